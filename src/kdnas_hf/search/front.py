"""The Pareto front of what a search measured, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .controllers.bayesian import ArchitectureFeatures, GaussianProcess
from .ledger import ArchitectureRecord
from .space import SearchSpace

DRAWS = 2000
FEWEST = 8  # measured architectures below which the noise of R² is not estimated
QUARTILES = 1.349  # interquartile range of a normal distribution, in standard deviations
MEDIAN = math.sqrt(math.pi / 2)  # error of the median of many normal values, in those of their mean


def pareto_front(records: Sequence[ArchitectureRecord]) -> list[ArchitectureRecord]:
    """The architectures that no other beats in both R² and speed-up, fastest first."""
    complete = [record for record in records if record.state == "complete" and record.r2 is not None]
    quality = np.array([record.r2 for record in complete], dtype=float)
    speed = np.array([record.speedup for record in complete])
    return [complete[index] for index in _front(quality, speed)]


@dataclass(frozen=True)
class FrontUncertainty:
    """What noise does to a front.

    Attributes:
        r2_deviation: At most the standard deviation of the R² of one architecture; None where too little was measured.
        chances: By trial, how often it is on the front if all were measured again.
    """

    r2_deviation: float | None
    chances: dict[int, float]


def front_uncertainty(
    records: Sequence[ArchitectureRecord], space: SearchSpace, latency_repeats: int, seed: int = 0
) -> FrontUncertainty:
    """Draw what would have been measured a second time, many times, and see who is on the front.

    The noise of R² is taken to be the error with which a Gaussian process predicts each architecture from the others,
    which is rather too much; that of a latency follows from its interquartile range.

    Args:
        records: What was measured.
        space: The search space.
        latency_repeats: Calls that a latency is the median of.
        seed: Of the draws.
    """
    complete = [record for record in records if record.state == "complete" and record.r2 is not None]
    quality = np.array([record.r2 for record in complete], dtype=float)
    speed = np.array([record.speedup for record in complete])
    deviation = None
    if len(complete) >= FEWEST and quality.std() > 0:
        features = ArchitectureFeatures(space)([record.architecture for record in complete])
        process = GaussianProcess.fit(features, quality, seed)
        deviation = float(np.sqrt(np.mean(process.left_out_errors() ** 2)))
    spread = np.array([record.latency_iqr_ms / record.latency_ms for record in complete])
    spread = spread / QUARTILES * MEDIAN / math.sqrt(latency_repeats)
    random = np.random.default_rng(seed)
    counts = np.zeros(len(complete))
    for _ in range(DRAWS):
        again = quality + (deviation or 0.0) * random.standard_normal(len(complete))
        counts[_front(again, speed * np.exp(spread * random.standard_normal(len(complete))))] += 1
    chances = {record.number: float(count) / DRAWS for record, count in zip(complete, counts, strict=True)}
    return FrontUncertainty(deviation, chances)


def _front(quality: np.ndarray, speed: np.ndarray) -> list[int]:
    """Indices of what nothing beats in both, fastest first."""
    front: list[int] = []
    for index in np.lexsort((-quality, -speed)):
        if not front or quality[index] > quality[front[-1]]:
            front.append(int(index))
    return front
