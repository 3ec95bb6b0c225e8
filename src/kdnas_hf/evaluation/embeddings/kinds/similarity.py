"""Similarity of pairs: whether vectors order pairs of sentences as people do."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.stats import rankdata

from .base import QUERY, Kind, Rows, register_kind


@register_kind
class Similarity(Kind):
    """Spearman's correlation of cosine similarity with the scores of people; 0 where all pairs are equally similar."""

    name = "similarity"
    metric = "spearman"
    columns = ("sentence1", "sentence2", "score")
    texts = {"sentence1": QUERY, "sentence2": QUERY}

    def check(self, rows: Rows) -> None:  # noqa: D102
        super().check(rows)
        scores = rows.columns["score"]
        for number, score in enumerate(scores, start=1):
            if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                raise ValueError(f"{rows.source}, record {number}: score={score!r} is no number; take it out.")
        if len(set(scores)) < 2:
            raise ValueError(f"{rows.source}: every score is {scores[0]!r}; there must be pairs that differ.")

    def contributions(self, rows: Rows, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """The cosine of each pair ``(rows,)``."""
        return (vectors["sentence1"] * vectors["sentence2"]).sum(axis=1)

    def scores(self, rows: Rows, contributions: np.ndarray, chosen: np.ndarray) -> dict[str, float]:  # noqa: D102
        given = rankdata(np.asarray(rows.columns["score"], dtype=float)[chosen])
        found = rankdata(contributions[chosen])
        if given.std() == 0 or found.std() == 0:
            return {"spearman": 0.0}
        return {"spearman": float(np.corrcoef(given, found)[0, 1])}
