"""Latency budgets: what a student may cost."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Protocol

MILLISECONDS = {"": 1.0, "ms": 1.0, "s": 1000.0, "us": 0.001}


class Timed(Protocol):
    """What has a latency: a candidate, a record, a student."""

    @property
    def latency_ms(self) -> float:
        """Median latency, in milliseconds."""

    @property
    def speedup(self) -> float:
        """How many times faster than the teacher it is."""


@dataclass(frozen=True)
class LatencyBudget:
    """How fast a student must be: beside its teacher, on the machine that measures, or both.

    Args:
        speedup: How many times faster than the teacher, at least.
        latency_ms: Median latency, in milliseconds, at most.

    Raises:
        ValueError: If the speed-up is negative, or the latency is not positive.
    """

    speedup: float = 0.0
    latency_ms: float = math.inf

    def __post_init__(self) -> None:
        if self.speedup < 0:
            raise ValueError(f"speedup={self.speedup:g} must not be negative.")
        if not self.latency_ms > 0:
            raise ValueError(f"latency_ms={self.latency_ms:g} must be positive.")

    @property
    def is_limit(self) -> bool:
        """Whether anything can miss it."""
        return self.speedup > 0 or self.latency_ms < math.inf

    def met_by(self, timed: Timed) -> bool:
        """Whether something is fast enough."""
        return all(excess <= 0 for excess in self.excess(timed).values())

    def excess(self, timed: Timed) -> dict[str, float]:
        """By how much each limit is missed, as Optuna takes constraints: what is not positive is met."""
        found = {}
        if self.speedup > 0:
            found["speedup"] = self.speedup - timed.speedup
        if self.latency_ms < math.inf:
            found["latency_ms"] = timed.latency_ms - self.latency_ms
        return found

    def stricter(self, other: LatencyBudget) -> LatencyBudget:
        """The budget that meets both."""
        return LatencyBudget(max(self.speedup, other.speedup), min(self.latency_ms, other.latency_ms))

    @property
    def slug(self) -> str:
        """The budget in a name of a repository: ``7x``, ``5ms``."""
        parts = [f"{self.speedup:g}x"] if self.speedup > 0 else []
        return "-".join([*parts, *([f"{self.latency_ms:g}ms"] if self.latency_ms < math.inf else [])])

    def __str__(self) -> str:
        """In words; empty where there is no limit."""
        parts = [f"at least {self.speedup:g}x faster than the teacher"] if self.speedup > 0 else []
        return " and ".join([*parts, *([f"at most {self.latency_ms:g} ms"] if self.latency_ms < math.inf else [])])


UNLIMITED = LatencyBudget()


def parse_latency(text: str | float, name: str = "latency_budget") -> float:
    """Milliseconds of ``"5ms"``, ``"5"``, ``"0.005s"`` or ``"5000us"``.

    Raises:
        ValueError: If it is no positive latency; the message names the field.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", str(text))
    if match is None or match[2] not in MILLISECONDS or float(match[1]) == 0:
        raise ValueError(f"{name}={text!r} is no latency; write it like 5ms or 0.005s.")
    return float(match[1]) * MILLISECONDS[match[2]]


def parse_budgets(speedups: list[float] | None, latencies: list[str] | None) -> list[LatencyBudget] | None:
    """The budgets of ``speedup_budgets`` and ``latency_budgets``, the widest first; None if neither is given.

    Raises:
        ValueError: If a list is empty, or holds what is no budget.
    """
    if speedups is not None and (not speedups or any(one <= 0 for one in speedups)):
        raise ValueError(f"speedup_budgets={speedups} must be one or several positive numbers.")
    if latencies is not None and not latencies:
        raise ValueError("latency_budgets=[] must be one or several latencies, like 5ms 10ms.")
    if speedups is None and latencies is None:
        return None
    allowed = sorted({parse_latency(one, "latency_budgets") for one in latencies or []}, reverse=True)
    return [
        *(LatencyBudget(speedup=one) for one in sorted(set(speedups or []))),
        *(LatencyBudget(latency_ms=one) for one in allowed),
    ]
