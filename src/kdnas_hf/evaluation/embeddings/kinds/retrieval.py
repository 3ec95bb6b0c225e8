"""Retrieval: how far up the one right passage of a corpus is among those that a query finds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .base import PASSAGE, QUERY, Kind, Rows, ranks, register_kind

CUTOFF = 10


@register_kind
class Retrieval(Kind):
    """Normalised discounted cumulative gain among the ten nearest passages, of queries with one right passage each."""

    name = "retrieval"
    metric = "ndcg_at_10"
    columns = ("query", "positive")
    texts = {"query": QUERY, "text": PASSAGE}
    corpus = ("text",)

    def check(self, rows: Rows) -> None:  # noqa: D102
        super().check(rows)
        size = len(rows.columns["text"])
        for number, row in enumerate(rows.columns["positive"], start=1):
            if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < size:
                raise ValueError(
                    f"{rows.source}, record {number}: positive={row!r} is no row of the corpus; give one from 0 to "
                    f"{size - 1}."
                )

    def contributions(self, rows: Rows, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """The gain of each query ``(rows,)``: 1 / log2(rank + 1) of its passage, 0 below the ten first."""
        rank = ranks(vectors["query"], vectors["text"], rows.columns["text"], np.array(rows.columns["positive"]))
        return np.where(rank <= CUTOFF, 1 / np.log2(rank + 1), 0.0)

    def scores(self, rows: Rows, contributions: np.ndarray, chosen: np.ndarray) -> dict[str, float]:  # noqa: D102
        return {"ndcg_at_10": float(contributions[chosen].mean())}
