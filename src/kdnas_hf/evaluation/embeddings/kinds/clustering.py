"""Clustering: whether texts of one label lie together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import v_measure_score

from .base import QUERY, Kind, Rows, register_kind

SEED = 0
STARTS = 10


@register_kind
class Clustering(Kind):
    """V-measure of the clusters that k-means makes of the vectors, as many as there are labels, against the labels."""

    name = "clustering"
    metric = "v_measure"
    columns = ("text", "label")
    texts = {"text": QUERY}

    def check(self, rows: Rows) -> None:  # noqa: D102
        super().check(rows)
        labels = len(set(map(str, rows.columns["label"])))
        if not 2 <= labels < self.size(rows):
            raise ValueError(
                f"{rows.source}: {labels} label(s) for {self.size(rows)} texts; there must be two or more, and fewer "
                "than texts."
            )

    def contributions(self, rows: Rows, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """The number of each text's cluster ``(rows,)``."""
        labels = len(set(map(str, rows.columns["label"])))
        return KMeans(labels, n_init=STARTS, random_state=SEED).fit_predict(vectors["text"]).astype(float)

    def scores(self, rows: Rows, contributions: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
        """V-measure of the chosen rows: a bootstrap resamples texts, and not the clustering."""
        labels = np.array(list(map(str, rows.columns["label"])))
        return {"v_measure": float(v_measure_score(labels[chosen], contributions[chosen].astype(int)))}
