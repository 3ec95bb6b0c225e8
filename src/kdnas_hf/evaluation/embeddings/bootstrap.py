"""Intervals of scores over rows, and of shares of scores, by resampling the same rows for every encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .kinds import Kind, Rows

LEVEL = 95


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval: percentiles of the bootstrap over rows."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampled:
    """A score and what it is on each resample.

    Attributes:
        value: Of all rows.
        draws: An array ``(resamples,)``.
    """

    value: float
    draws: np.ndarray

    @classmethod
    def of(cls, kind: Kind, rows: Rows, contributions: np.ndarray, resamples: int, seed: int) -> Resampled:
        """The kind's metric.

        The resamples depend on the seed and the number of rows alone. So they are the same for every encoder, and for
        languages of one size: where the n-th row says the same in each, as in translated data, rows are drawn and not
        language by language, without which an average over languages would look more certain than it is.
        """
        size = kind.size(rows)
        rng = np.random.default_rng(seed)

        def score(chosen: np.ndarray) -> float:
            return kind.scores(rows, contributions, chosen)[kind.metric]

        draws = np.array([score(rng.integers(size, size=size)) for _ in range(resamples)])
        return cls(score(np.arange(size)), draws)

    @classmethod
    def mean(cls, scores: list[Resampled]) -> Resampled:
        """The mean of the scores of several languages, resample by resample."""
        return cls(float(np.mean([s.value for s in scores])), np.mean([s.draws for s in scores], axis=0))

    def estimate(self) -> Estimate:
        """The score with its interval."""
        return Estimate(self.value, *_interval(self.draws))

    def share_of(self, teacher: Resampled) -> Estimate | None:
        """The share of a teacher's score with its interval; None where the teacher's score is not positive.

        It is paired: each resample's share is of the same rows. Resamples in which the teacher has no positive score do
        not count.
        """
        counted = teacher.draws > 0
        if teacher.value <= 0 or not counted.any():
            return None
        return Estimate(self.value / teacher.value, *_interval(self.draws[counted] / teacher.draws[counted]))


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(draws, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)
