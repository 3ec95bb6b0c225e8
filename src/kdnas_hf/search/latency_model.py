"""Latency of architectures that were not measured: a regression on those that were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from .space import Architecture


@dataclass(frozen=True)
class LatencyModel:
    """Latency as the sum of what an encoder does, each kind of work with its own cost.

    In each layer: a constant (calls of kernels), projections (hidden²), both products of the feed-forward block (hidden
    times intermediate), attention (hidden), and each activation (intermediate), summed over layers that may differ. For
    the whole: a constant, and the map from smaller word embeddings (embedding size times hidden). Costs are
    not negative, and are fitted so that relative errors are small (Lawson and Hanson's non-negative least squares).

    Attributes:
        activations: Activations that the costs know.
        costs: ``(terms,)``, in milliseconds.
        error: Median relative error of architectures that were left out of the fit, one at a time.
    """

    activations: tuple[str, ...]
    costs: np.ndarray
    error: float

    @classmethod
    def fit(cls, latencies_ms: Mapping[Architecture, float]) -> LatencyModel:
        """Fit the costs.

        Args:
            latencies_ms: What was measured, in milliseconds.

        Raises:
            ValueError: If there are fewer than two architectures.
        """
        if len(latencies_ms) < 2:
            raise ValueError(f"a regression of latency needs two architectures or more, not {len(latencies_ms)}.")
        activations = tuple(sorted({name for one in latencies_ms for name in one.per_layer("hidden_act")}))
        terms = _terms(list(latencies_ms), activations)
        measured = np.array(list(latencies_ms.values()))
        errors = []
        for left_out in range(len(measured)):
            others = np.arange(len(measured)) != left_out
            predicted = terms[left_out] @ _costs(terms[others], measured[others])
            errors.append(abs(predicted / measured[left_out] - 1))
        return cls(activations, _costs(terms, measured), float(np.median(errors)))

    def __call__(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """Predicted latency, in milliseconds; an activation that was never measured costs what a known one does.

        Returns:
            ``(architectures,)``.
        """
        return _terms(architectures, self.activations) @ self.costs


def _terms(architectures: Sequence[Architecture], activations: Sequence[str]) -> np.ndarray:
    """Work of each kind, in thousands: ``(architectures, terms)``."""
    rows = []
    for one in architectures:
        hidden = one.hidden_size / 1000
        inner = dict.fromkeys(activations, 0.0)
        for neurons, name in zip(one.per_layer("intermediate_size"), one.per_layer("hidden_act"), strict=True):
            inner[name if name in inner else activations[0]] += neurons / 1000
        layers = [one.num_hidden_layers * work for work in (1.0, hidden, hidden * hidden)]
        embedding = 0.0 if one.embedding_size is None else hidden * one.embedding_size / 1000
        rows.append([1.0, *layers, hidden * sum(inner.values()), *inner.values(), embedding])
    return np.array(rows)


def _costs(terms: np.ndarray, measured: np.ndarray) -> np.ndarray:
    costs, _ = nnls(terms / measured[:, None], np.ones(len(measured)))
    return costs
