"""What a search found: confirmed shapes, distilled students, and the best of its trials."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from ..latency import Latency
from .architecture import Architecture
from .trial import Trial

RESULTS_FILE = "distillation.json"  # the distilled students of a run
SEARCH, RANDOM = "search", "random"  # origins of a confirmed shape; any other is a rule of thumb


@dataclass(frozen=True, kw_only=True)
class MeasuredShape:
    """An architecture, its latency beside the teacher's, and what it costs, as `Trial.costs`."""

    architecture: Architecture
    latency: Latency
    costs: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def speedup(self) -> float:
        """How many times faster than its teacher it is."""
        return self.latency.speedup

    def to_dict(self) -> dict[str, Any]:
        """Values by name, for JSON."""
        return asdict(self) | {"architecture": self.architecture.as_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` gave; TypeError or KeyError if it did not."""
        shape, latency = Architecture(**values["architecture"]), Latency(**values["latency"])
        return cls(**{**values, "architecture": shape, "latency": latency})


@dataclass(frozen=True, kw_only=True)
class Confirmation(MeasuredShape):
    """A shape that was trained with further seeds, and timed with more calls.

    All of a search have the same seeds and texts, and are timed interleaved. One of several origins is there for each.

    Attributes:
        origin: ``"search"``, ``"random"``, or the rule of thumb in words, like ``"teacher's width, 2 layers"``.
        qualities: Quality after a mini-KD with each seed, at least one; fewer than others have if some diverged.
        trial: Number of its trial, if the search measured it.
    """

    origin: str
    qualities: tuple[float, ...]
    trial: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "qualities", tuple(self.qualities))  # JSON knows lists alone

    @property
    def quality(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.qualities)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds; 0 of one seed."""
        return statistics.stdev(self.qualities) if len(self.qualities) > 1 else 0.0

    @property
    def is_rule(self) -> bool:
        """Whether it is a rule of thumb."""
        return self.origin not in (SEARCH, RANDOM)


@dataclass(frozen=True, kw_only=True)
class DistilledStudent(MeasuredShape):
    """A student that was distilled on the full corpus.

    Attributes:
        path: Its directory, relative to the run directory.
        quality: 1 - L on held-out text, as `Trial.quality`.
        loss: The weighted sum of its losses on held-out text.
        quality_per_layer: R² of each of its mapped layers; empty where no hidden states were learned.
        tokens: Real tokens that it was trained on.
        reward: Its reward after the full distillation.
    """

    path: str
    quality: float
    loss: float
    quality_per_layer: Mapping[str, float] = field(hash=False)
    tokens: int
    reward: float

    @property
    def parameters(self) -> int:
        """Its parameters, embeddings included."""
        return int(self.costs["parameters"])


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        folder: The run directory.
        trials: Every architecture that was chosen, by number; those of killed workers are left out.
        confirmations: The shapes that were measured again, and what they were compared with.
        students: The distilled students, best first.
        latency_method: How latency was measured, in one sentence.
        cost: Wall-clock seconds by stage.
        log_history: What the full distillation logged; of several students the mean of their losses.
    """

    folder: Path
    trials: Sequence[Trial]
    confirmations: Sequence[Confirmation]
    students: Sequence[DistilledStudent]
    latency_method: str
    cost: Mapping[str, float] = field(default_factory=dict)
    log_history: Sequence[Mapping[str, Any]] = ()


def best_known(trial: Trial, confirmations: Sequence[Confirmation]) -> Trial:
    """A complete trial with the figures of its shape's confirmation, if it has one; reward and loss stay."""
    for one in confirmations if trial.is_complete else ():
        if one.architecture == trial.architecture:
            return replace(trial, quality=one.quality, latency=one.latency, costs={**trial.costs, **one.costs})
    return trial


def pareto_front(trials: Sequence[Trial], confirmations: Sequence[Confirmation] = ()) -> list[Trial]:
    """The complete trials that no other beats in both quality and speed-up, by `best_known` figures, fastest first."""
    front: list[Trial] = []
    known = [best_known(trial, confirmations) for trial in trials if trial.is_complete]
    for trial in sorted(known, key=lambda one: (-(one.speedup or 0.0), -(one.quality or 0.0))):
        if not front or (trial.quality or 0.0) > (front[-1].quality or 0.0):
            front.append(trial)
    return front
