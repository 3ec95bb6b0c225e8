"""Latency of architectures that were not measured: a regression on those that were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from ..students import Architecture


@dataclass(frozen=True)
class LatencyModel:
    """Latency as the sum of what an encoder does, each kind of work with its own cost.

    In each layer: a constant (calls of kernels), projections (hidden²), the feed-forward block (hidden times
    intermediate), attention (hidden, and heads), and each activation (intermediate), summed over layers that may
    differ. For the whole: a constant, and the map from smaller word embeddings (embedding size times hidden). Costs are
    not negative, and fitted so that relative errors are small (Lawson and Hanson's non-negative least squares).

    Attributes:
        activations: Activations that the costs know.
        costs: ``(terms,)``, in milliseconds.
        errors: ``(architectures,)``, how much too much is predicted of each if it is left out, as a share.
    """

    activations: tuple[str, ...]
    costs: np.ndarray
    errors: np.ndarray

    @classmethod
    def fit(cls, latencies_ms: Mapping[Architecture, float]) -> LatencyModel:
        """Fit the costs to what was measured of two architectures or more; ValueError if there are fewer."""
        if len(latencies_ms) < 2:
            raise ValueError(f"a regression of latency needs two architectures or more, not {len(latencies_ms)}.")
        activations = tuple(sorted({name for one in latencies_ms for name in one.per_layer("hidden_act")}))
        terms = work_of(list(latencies_ms), activations)
        measured = np.array(list(latencies_ms.values()))
        errors = [
            one @ _costs(np.delete(terms, place, 0), np.delete(measured, place)) / measured[place] - 1
            for place, one in enumerate(terms)
        ]
        return cls(activations, _costs(terms, measured), np.array(errors))

    @property
    def margin(self) -> float:
        """By how much too much is predicted at most, as a share, of all but one in twenty."""
        return max(float(np.quantile(self.errors, 0.95)), 0.0)

    def __call__(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """Predicted latencies ``(architectures,)``, in ms; an activation that was never measured costs like another."""
        return work_of(architectures, self.activations) @ self.costs


def work_of(architectures: Sequence[Architecture], activations: Sequence[str]) -> np.ndarray:
    """Work of each kind, in thousands: ``(architectures, terms)``."""
    rows = []
    for one in architectures:
        hidden = one.hidden_size / 1000
        inner = dict.fromkeys(activations, 0.0)
        for neurons, name in zip(one.per_layer("intermediate_size"), one.per_layer("hidden_act"), strict=True):
            inner[name if name in inner else activations[0]] += neurons / 1000
        layers = [one.num_hidden_layers * work for work in (1.0, hidden, hidden * hidden)]
        heads = sum(one.per_layer("num_attention_heads")) / 1000
        embedding = 0.0 if one.embedding_size is None else hidden * one.embedding_size / 1000
        rows.append([1.0, *layers, heads, hidden * sum(inner.values()), *inner.values(), embedding])
    return np.array(rows)


def _costs(terms: np.ndarray, measured: np.ndarray) -> np.ndarray:
    costs, _ = nnls(terms / measured[:, None], np.ones(len(measured)))
    return costs
