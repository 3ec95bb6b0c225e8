"""Budgets: limits on what a student may cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

from ..latency import Latency

MILLISECONDS = {"": 1.0, "ms": 1.0, "s": 1000.0, "us": 0.001}
# unit of a value, and what it is divided by to be written
_WRITTEN = {
    "speedup": ("x", 1),
    "latency_ms": (" ms", 1),
    "parameters": ("M parameters", 1e6),
    "encoder_parameters": ("M encoder parameters", 1e6),
    "size_mb": (" MB", 1),
    "memory_mb": (" MB memory", 1),
    "flops": (" GFLOP", 1e9),
}


class Timed(Protocol):
    """A shape whose costs are known in part."""

    @property
    def latency(self) -> Latency | None:
        """Its latency beside the teacher's; None until it is measured."""

    @property
    def costs(self) -> Mapping[str, float]:
        """Other costs, by the names of `Budget`'s limits."""


@dataclass(frozen=True)
class Budget:
    """Limits on a student's costs. An infinite limit is none, and neither is a speed-up of 0.

    Args:
        speedup: How many times faster than the teacher, at least.
        latency_ms: Median latency, in milliseconds, at most.
        parameters: Parameters of the encoder with its embeddings, at most.
        encoder_parameters: Parameters of all layers, without embeddings, at most.
        size_mb: File of the backend that it is deployed with, in MB (10^6 bytes), at most.
        memory_mb: Memory that it adds to a process, in MB (10^6 bytes), at most.
        flops: Floating-point operations of a call, at most.

    Raises:
        ValueError: If the speed-up is negative or infinite, or another limit is not positive.
    """

    speedup: float = 0.0
    latency_ms: float = math.inf
    parameters: float = math.inf
    encoder_parameters: float = math.inf
    size_mb: float = math.inf
    memory_mb: float = math.inf
    flops: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.speedup < math.inf:
            raise ValueError(f"speedup={self.speedup:g} must be a number that is not negative.")
        for name, limit in list(asdict(self).items())[1:]:
            if not limit > 0:
                raise ValueError(f"{name}={limit:g} must be positive.")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that something can miss, by name."""
        return {name: limit for name, limit in asdict(self).items() if 0 < limit < math.inf}

    @property
    def is_limit(self) -> bool:
        """Whether anything can miss it."""
        return bool(self.limits)

    def met_by(self, of: Timed | Mapping[str, float]) -> bool:
        """Whether a shape, or costs by name, meet all limits; an unknown cost misses none."""
        costs = of if isinstance(of, Mapping) else costs_of(of)
        return all(excess <= 0 for excess in self.excess(costs).values())

    def excess(self, costs: Mapping[str, float]) -> dict[str, float]:
        """By how much each known cost misses its limit, as Optuna takes constraints: what is not positive is met."""
        known = {name: costs[name] - limit for name, limit in self.limits.items() if name in costs}
        return {name: -excess if name == "speedup" else excess for name, excess in known.items()}

    def stricter(self, other: Budget) -> Budget:
        """The budget that meets both."""
        stricter = {name: min(limit, getattr(other, name)) for name, limit in asdict(self).items()}
        return Budget(**stricter | {"speedup": max(self.speedup, other.speedup)})

    @property
    def slug(self) -> str:
        """The budget in a name of a repository: ``7x``, ``5ms-100MB``."""
        return "-".join(written(*limit).replace(" ", "") for limit in self.limits.items())

    def __str__(self) -> str:
        """In words; empty without a limit."""
        most = [f"at most {written(name, limit)}" for name, limit in self.limits.items() if name != "speedup"]
        faster = f"at least {written('speedup', self.speedup)} faster than the teacher"
        return " and ".join([faster, *most] if self.speedup > 0 else most)


UNLIMITED = Budget()


def costs_of(timed: Timed) -> dict[str, float]:
    """What is known of the costs of a shape, by the names of `Budget`'s limits."""
    latency = timed.latency
    known = {} if latency is None else {"latency_ms": latency.student_ms, "speedup": latency.speedup}
    return {**timed.costs, **known}


def written(name: str, value: float) -> str:
    """A cost with its unit, like ``5 ms`` or ``21.3M parameters``."""
    unit, divisor = _WRITTEN[name]
    return f"{value / divisor:.6g}{unit}"


def parse_latency(text: str | float, name: str = "latency_budget") -> float:
    """Milliseconds of ``"5ms"``, ``"5"``, ``"0.005s"`` or ``"5000us"``; ValueError, naming the field, of others."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", str(text))
    if match is None or match[2] not in MILLISECONDS or float(match[1]) == 0:
        raise ValueError(f"{name}={text!r} is not a latency; write it like 5ms or 0.005s.")
    return float(match[1]) * MILLISECONDS[match[2]]


def parse_budgets(speedups: list[float] | None, latencies: list[str] | None) -> list[Budget] | None:
    """The budgets of two fields, the widest first; None if neither is given, ValueError if an entry is none."""
    if speedups is None and latencies is None:
        return None
    if speedups is not None and min(speedups, default=0) <= 0:
        raise ValueError(f"speedup_budgets={speedups} must be one or several positive numbers.")
    if latencies == []:
        raise ValueError("latency_budgets=[] must be one or several latencies, like 5ms 10ms.")
    allowed = {parse_latency(one, "latency_budgets") for one in latencies or []}
    faster = [Budget(speedup=one) for one in sorted(set(speedups or []))]
    return faster + [Budget(latency_ms=one) for one in sorted(allowed, reverse=True)]
