"""`Trial`: one architecture of a search, and everything that was measured of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from ..latency import Latency
from ..students import Architecture
from ..utils.json_lines import JsonRecord

RUNNING, COMPLETE, STOPPED, FAILED = "running", "complete", "stopped", "failed"

# reasons of failure
DIVERGED = "diverged"
OUT_OF_MEMORY = "out of memory"
TOO_SLOW = "too slow"  # its measured latency misses the budget, so that it was not trained
KILLED = "killed"  # its worker gave no sign of life; says nothing of the architecture, which may be tried again


@dataclass(frozen=True)
class Trial(JsonRecord):
    """An architecture that was chosen, and what is known of it so far.

    A trial is a view of one of Optuna's (`SearchStudy.trials`), and is written nowhere else but for readers: each is a
    line of ``architectures.jsonl``.

    Attributes:
        number: Its number in the study.
        episode: The episode that it was chosen in, counted from 0.
        architecture: Its shape, and the teacher layers that it keeps.
        state: ``"running"``; ``"complete"``; ``"stopped"`` at a rung of successive halving, and then all figures are
            those of the rung; or ``"failed"``.
        failure: Why it failed: ``"diverged"``, ``"out of memory"``, ``"too slow"`` or ``"killed"``; else None.
        latency: Its latency beside the teacher's; None until it is measured.
        costs: What its shape costs by the names of `Budget`'s limits: ``parameters`` of the saved student,
            ``encoder_parameters`` (no embeddings), ``size_mb``, ``flops`` of a call, and ``memory_mb`` if it was
            measured.
        quality: 1 - L of the reward on held-out text after its mini-KD: R² of the last mapped layer where hidden
            states are learned. None if it was not trained, or diverged.
        loss: The weighted sum of its losses on held-out text.
        readings: Its quality by optimizer steps, each time that it was evaluated.
        tokens: Real (unpadded) tokens that it was trained on.
        seconds: Its share of the wall-clock time of its pool's mini-KD.
        reward: What the controller learns from; None where there is no quality.
        machine: Where its latency was measured.
    """

    number: int
    episode: int
    architecture: Architecture
    state: str = RUNNING
    failure: str | None = None
    latency: Latency | None = None
    costs: Mapping[str, float] = field(default_factory=dict, hash=False)
    quality: float | None = None
    loss: float | None = None
    readings: Mapping[int, float] = field(default_factory=dict, hash=False)
    tokens: int = 0
    seconds: float = 0.0
    reward: float | None = None
    machine: str = ""

    @property
    def name(self) -> str:
        """Its name in a `StudentPool` and in the metrics of the trainer."""
        return f"trial_{self.number}"

    @property
    def is_complete(self) -> bool:
        """Whether its mini-KD ran to the end."""
        return self.state == COMPLETE

    @property
    def speedup(self) -> float | None:
        """How many times faster than its teacher it is; None until its latency is measured."""
        return None if self.latency is None else self.latency.speedup

    def to_json(self) -> str:
        """The trial as one line of JSON, with ``speedup`` for those who read it."""
        values: dict[str, Any] = asdict(self) | {"architecture": self.architecture.as_dict(), "speedup": self.speedup}
        values["readings"] = {str(step): quality for step, quality in self.readings.items()}
        return json.dumps(values, allow_nan=False)

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> Self:
        del values["speedup"]
        values["architecture"] = Architecture(**values["architecture"])
        values["latency"] = None if values["latency"] is None else Latency(**values["latency"])
        values["readings"] = {int(step): quality for step, quality in values["readings"].items()}
        return cls(**values)
