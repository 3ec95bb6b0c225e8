"""What a search says of architectures that it did not measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from scipy.stats import norm

from .budgets import UNLIMITED, LatencyBudget
from .controllers.base import LEADERS
from .controllers.bayesian import ArchitectureFeatures, GaussianProcess
from .latency_model import LatencyModel
from .ledger import ArchitectureRecord
from .space import Architecture, SearchSpace

FEWEST = 8  # measured architectures below which nothing is predicted


@dataclass(frozen=True)
class PredictedArchitecture:
    """An architecture that was not measured.

    Attributes:
        architecture: Its shape.
        reward: The reward that is expected.
        deviation: Standard deviation of that expectation.
        latency_ms: The latency that is expected, in milliseconds, beside ``teacher_latency_ms``.
        teacher_latency_ms: Median of the teacher's latencies, in milliseconds.
        chance: Probability that its reward is above that of the best measured architecture.
    """

    architecture: Architecture
    reward: float
    deviation: float
    latency_ms: float
    teacher_latency_ms: float
    chance: float

    @property
    def speedup(self) -> float:
        """How many times faster than the teacher it is expected to be."""
        return self.teacher_latency_ms / self.latency_ms


@dataclass(frozen=True)
class SpacePrediction:
    """Predictions for the architectures of a space that were not measured: for all, if they can be gone through.

    Attributes:
        architectures: The highest expected reward first.
        latency_error: Median relative error of the predicted latencies, see `LatencyModel`.
    """

    architectures: list[PredictedArchitecture]
    latency_error: float


def predict_space(
    space: SearchSpace, records: Sequence[ArchitectureRecord], budget: LatencyBudget = UNLIMITED, seed: int = 0
) -> SpacePrediction | None:
    """Predict rewards by a Gaussian process, and latencies by regression, from what a search measured.

    For every architecture of the space; where it has too many, for a sample of them and neighbours of the best.

    Args:
        space: The search space.
        records: What was measured.
        budget: Architectures that are expected to miss it are left out.
        seed: Of the fit.

    Returns:
        None where fewer than eight architectures were measured to the end.
    """
    complete = {record.architecture: record for record in records if record.state == "complete"}
    if len(complete) < FEWEST:
        return None
    features = ArchitectureFeatures(space)
    rewards = np.array([record.reward for record in complete.values()])
    process = GaussianProcess.fit(features(list(complete)), rewards, seed)
    # latencies of one episode are measured beside one teacher: its drift is divided out
    teacher_ms = float(np.median([record.teacher_latency_ms for record in records]))
    latency = LatencyModel.fit({record.architecture: teacher_ms / record.speedup for record in records})
    measured = {record.architecture for record in records}
    leaders = sorted(complete, key=lambda one: -(complete[one].reward or 0.0))[:LEADERS]
    others = [one for one in space.pool(Random(seed), leaders) if one not in measured]
    if not others:
        return SpacePrediction([], latency.error)
    means, deviations = process.predict(features(others))
    chances = norm.cdf((means - process.predict(process.features)[0].max()) / deviations)
    found = [
        PredictedArchitecture(architecture, float(mean), float(deviation), float(ms), teacher_ms, float(chance))
        for architecture, mean, deviation, ms, chance in zip(
            others, means, deviations, latency(others), chances, strict=True
        )
    ]
    able = [one for one in found if budget.met_by(one)]
    return SpacePrediction(sorted(able, key=lambda one: -one.reward), latency.error)
