"""Bitext mining: whether the nearest sentence of the other language is the translation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .base import QUERY, Kind, Rows, ranks, register_kind


@register_kind
class Bitext(Kind):
    """The share of sentences whose translation is the nearest of all, the mean of both directions."""

    name = "bitext"
    metric = "accuracy"
    columns = ("source", "target")
    texts = {"source": QUERY, "target": QUERY}

    def contributions(self, rows: Rows, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Whether the translation is found, from source to target and back ``(rows, 2)``."""
        source, target = vectors["source"], vectors["target"]
        own = np.arange(self.size(rows))
        there = ranks(source, target, rows.columns["target"], own) == 1
        back = ranks(target, source, rows.columns["source"], own) == 1
        return np.stack([there, back], axis=1).astype(float)

    def scores(self, rows: Rows, contributions: np.ndarray, chosen: np.ndarray) -> dict[str, float]:  # noqa: D102
        there, back = contributions[chosen].mean(axis=0)
        return {"accuracy": float(there + back) / 2, "source_to_target": float(there), "target_to_source": float(back)}
