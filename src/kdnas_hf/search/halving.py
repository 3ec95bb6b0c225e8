"""Successive halving: candidates that do not promise enough stop early, and cost nothing more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SuccessiveHalving:
    """The candidates of a pool are compared on their way, and the better share of them trains on.

    (Jamieson and Talwalkar 2016, arXiv 1502.07943, within the pool of a mini-KD.)

    Args:
        rungs: Shares of the steps of a mini-KD after which candidates are compared, each more than the one before.
        keep: Share of the candidates that train on after each rung; at least one does.

    Raises:
        ValueError: If a share is none, or rungs are not in order.
    """

    rungs: tuple[float, ...]
    keep: float = 0.5

    def __post_init__(self) -> None:
        if not all(0 < rung < 1 for rung in self.rungs) or list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"halving_rungs={list(self.rungs)} must be shares of a mini-KD, ascending, as 0.25 0.5.")
        if not 0 < self.keep < 1:
            raise ValueError(f"halving_keep={self.keep} must be more than 0 and less than 1.")

    def steps(self, max_steps: int) -> list[int]:
        """The rungs in optimizer steps."""
        return sorted({max(round(rung * max_steps), 1) for rung in self.rungs})

    def stopped(self, rewards: Mapping[str, float]) -> set[str]:
        """The candidates that stop at a rung, by the rewards that those who still train have there."""
        best_first = sorted(rewards, key=lambda name: -rewards[name])
        return set(best_first[math.ceil(self.keep * len(best_first)) :])
