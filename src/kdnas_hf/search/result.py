"""What a search found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .architecture import Architecture
from .ledger import ArchitectureRecord


@dataclass(frozen=True)
class DistilledStudent:
    """A student that was distilled on the full corpus.

    Attributes:
        path: Its directory, relative to the run directory.
        architecture: Its shape.
        loss: L of the reward, on held-out text.
        r2: R² of its last mapped layer on held-out text.
        r2_per_layer: R² of each of its mapped layers.
        latency_ms: Median latency, in milliseconds, as the search measured it.
        latency_iqr_ms: Interquartile range, in milliseconds.
        teacher_latency_ms: Median latency of the teacher measured interleaved with it, in milliseconds.
        speedup: ``teacher_latency_ms / latency_ms``.
        parameters: Its parameters, embeddings included.
        tokens: Real tokens that it was trained on.
        reward: Its reward after the full distillation.
    """

    path: str
    architecture: Architecture
    loss: float
    r2: float
    r2_per_layer: dict[str, float]
    latency_ms: float
    latency_iqr_ms: float
    teacher_latency_ms: float
    speedup: float
    parameters: int
    tokens: int
    reward: float


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        folder: The run directory.
        records: Every measured architecture.
        students: The distilled students, best first.
        latency_method: How latency was measured, in one sentence.
        cost: Wall-clock seconds by stage.
        log_history: What the full distillation logged; of several students the mean of their losses.
        curves: R² by optimizer steps of the mini-KD, for each trial; in the main process.
    """

    folder: Path
    records: list[ArchitectureRecord]
    students: list[DistilledStudent]
    latency_method: str
    cost: dict[str, float] = field(default_factory=dict)
    log_history: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[int, dict[int, float]] = field(default_factory=dict)
