"""The ledger: one line of ``architectures.jsonl`` for each measured architecture, written the moment it is measured."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ..utils.json_lines import JsonLines, JsonRecord
from .space import Architecture


@dataclass(frozen=True)
class ArchitectureRecord(JsonRecord):
    """What was measured of one architecture.

    Attributes:
        number: Number of its trial in the study.
        episode: Episode that it was a candidate of, counted from 0.
        architecture: Its shape.
        state: ``"complete"``; ``"stopped"`` at a rung of successive halving, and then all figures are those of the
            rung; or ``"failed"`` if its mini-KD diverged, and then the figures that do not exist are None.
        loss: L of the reward: on held-out text, extrapolated to the reward's horizon (see `Reward`).
        r2: R² of its last mapped layer on held-out text after the mini-KD, as measured.
        latency_ms: Median latency, in milliseconds.
        latency_iqr_ms: Interquartile range of the latency, in milliseconds.
        teacher_latency_ms: Median latency of the teacher, measured interleaved with it, in milliseconds.
        speedup: ``teacher_latency_ms / latency_ms``.
        parameters: Parameters of the student as it is saved, embeddings included.
        tokens: Real (unpadded) tokens that it was trained on.
        seconds: Its share of the wall-clock time of its pool's mini-KD: that time divided by the pool's candidates,
            counted from the last time that the mini-KD was resumed.
        reward: What the controller learns from.
    """

    number: int
    episode: int
    architecture: Architecture
    state: str
    loss: float | None
    r2: float | None
    latency_ms: float
    latency_iqr_ms: float
    teacher_latency_ms: float
    speedup: float
    parameters: int
    tokens: int
    seconds: float
    reward: float | None

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(asdict(self) | {"architecture": self.architecture.as_dict()}, allow_nan=False)

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> Self:
        return cls(**values | {"architecture": Architecture(**values["architecture"])})


class Ledger(JsonLines[ArchitectureRecord]):
    """Append-only file of `ArchitectureRecord`.

    Args:
        path: ``architectures.jsonl`` of a run.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, ArchitectureRecord.from_json)
