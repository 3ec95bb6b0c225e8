"""What a search found: confirmed shapes, distilled students, and the best of its trials."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from ..latency import Latency
from ..students import Architecture
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
        """The values by name, for JSON."""
        return asdict(self) | {"architecture": self.architecture.as_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` gave; TypeError or KeyError if it did not."""
        typed = {"architecture": Architecture(**values["architecture"]), "latency": Latency(**values["latency"])}
        return cls(**{**values, **typed})


@dataclass(frozen=True, kw_only=True)
class Confirmation(MeasuredShape):
    """A shape that was trained with further seeds, and timed with more calls: alike for all of a search, interleaved.

    A shape of several origins is there once for each, with the same figures.

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

    @classmethod
    def of(cls, trial: Trial) -> Self:
        """A complete trial as the search read it, with one seed."""
        assert trial.latency is not None
        assert trial.quality is not None
        shape: dict[str, Any] = {"architecture": trial.architecture, "latency": trial.latency, "costs": trial.costs}
        return cls(**shape, origin=SEARCH, qualities=(trial.quality,), trial=trial.number)

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
        quality_label: What quality is called, see `Quality`.
        cost: Wall-clock seconds by stage.
        log_history: What the full distillation logged; of several students the mean of their losses.
    """

    folder: Path
    trials: Sequence[Trial]
    confirmations: Sequence[Confirmation]
    students: Sequence[DistilledStudent]
    latency_method: str
    quality_label: str = "R²"
    cost: Mapping[str, float] = field(default_factory=dict)
    log_history: Sequence[Mapping[str, Any]] = ()


def best_known(trials: Sequence[Trial], confirmations: Sequence[Confirmation]) -> list[Confirmation]:
    """Every measured shape once: confirmed ones by their means over seeds, complete trials as the search read them."""
    known = {one.architecture: one for one in reversed(confirmations)}
    for trial in trials:
        if trial.is_complete:
            known.setdefault(trial.architecture, Confirmation.of(trial))
    return list(known.values())


def pareto_front(trials: Sequence[Trial], confirmations: Sequence[Confirmation] = ()) -> list[Confirmation]:
    """The measured shapes (see `best_known`) that no other beats in both quality and speed-up, fastest first."""
    front: list[Confirmation] = []
    for one in sorted(best_known(trials, confirmations), key=lambda shape: (-shape.speedup, -shape.quality)):
        if not front or one.quality > front[-1].quality:
            front.append(one)
    return front
