"""Which architectures can meet a budget, known before any is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from random import Random
from typing import Any

import numpy as np

from ..export.budgets import Budget, written
from ..export.latency_model import LatencyModel, work_of
from ..latency import Latency
from ..students import Architecture
from .controllers.bayesian import ArchitectureFeatures
from .space import SearchSpace

SPREAD, NEAR = 16, 8  # shapes that are timed: first spread over the space, then near the budget


class PredictedBudget:
    """Tells which architectures can meet a budget before they are trained.

    Costs of a shape are known. Latency is regressed on shapes that are timed first; what misses its limit by no more
    than the regression errs (`LatencyModel.margin`) is admitted, so that few are lost. Memory is not predicted.

    ``shape_costs`` gives what shapes cost, by the names of the budget's limits; ``measure`` times architectures, and is
    None where only shapes are looked at.

    Raises:
        ValueError: If every shape costs too much.
    """

    def __init__(
        self,
        space: SearchSpace,
        budget: Budget,
        shape_costs: Callable[[Sequence[Architecture]], dict[str, np.ndarray]],
        measure: Callable[[Mapping[int, Architecture]], Mapping[int, Latency]] | None = None,
    ) -> None:
        self.space, self.budget, self.shape_costs, self.measure = space, budget, shape_costs, measure
        self.model: LatencyModel | None = None
        self._teacher_ms = 0.0
        self._members = self._admitted(space.pool(Random(0)))

    def time(self) -> list[dict[str, Any]]:
        """Time shapes far from each other, then those expected nearest to a limit on latency: JSON values for `fit`."""
        if not {"speedup", "latency_ms"} & self.budget.limits.keys():
            return []
        _, first = np.unique(work_of(self._members, self.space.hidden_act), axis=0, return_index=True)
        shapes = [self._members[index] for index in sorted(first)]
        chosen = _spread(shapes, ArchitectureFeatures(self.space)(shapes))
        rows = self._time(chosen)
        left = [one for one in shapes if one not in chosen]
        if left and len(rows) > 1:
            self._regress(rows)
            distances = np.abs(np.log(self._taken(self.expected(left))))
            rows += self._time([left[index] for index in np.argsort(distances, kind="stable")[:NEAR]])
        return rows

    def fit(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Regress latency on what `time` returned; ValueError if no architecture is expected to meet the budget."""
        if len(rows) > 1:
            self._regress(rows)
            self._members = self._admitted(self._members)

    def expected(self, architectures: Sequence[Architecture]) -> dict[str, np.ndarray]:
        """Costs by the names of the budget's limits, ``(architectures,)`` each; of latency once it is regressed."""
        costs = self.shape_costs(architectures)
        if self.model is not None:
            costs["latency_ms"] = self.model(architectures)
            costs["speedup"] = self._teacher_ms / costs["latency_ms"]
        return costs

    def admits(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """Whether each is expected to meet the budget: ``(architectures,)``, bool."""
        if not len(architectures):
            return np.zeros(0, dtype=bool)
        costs = self.expected(architectures)
        if self.model is not None:
            costs["latency_ms"] /= 1 + self.model.margin
            costs["speedup"] *= 1 + self.model.margin
        return self._taken(costs) <= 1

    def _taken(self, costs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The share of a limit that is taken, of the limit that is missed most: ``(architectures,)``."""
        limits = [(name, costs[name], limit) for name, limit in self.budget.limits.items() if name in costs]
        shares = [limit / cost if name == "speedup" else cost / limit for name, cost, limit in limits]
        return np.max([np.zeros(len(costs["flops"])), *shares], axis=0)

    def _admitted(self, members: Sequence[Architecture]) -> list[Architecture]:
        admitted = self.admits(members)
        if not admitted.any():
            expected = self.expected(members)
            nearest = int(np.argmin(self._taken(expected)))
            costs = {name: float(values[nearest]) for name, values in expected.items()}
            missed = [name for name, excess in self.budget.excess(costs).items() if excess > 0]
            comes_to = ", ".join(written(name, float(f"{costs[name]:.3g}")) for name in missed)
            flags = {"speedup": "a smaller speedup", "latency_ms": "a larger latency_budget"}
            wider = " and ".join(flags.get(name, f"a larger max_{name}") for name in missed)
            raise ValueError(
                f"no architecture of the space meets the budget ({self.budget}); the nearest, {members[nearest]}, is "
                f"expected to have {comes_to}; allow smaller shapes in the space, or {wider}."
            )
        return [one for one, able in zip(members, admitted, strict=True) if able]

    def _time(self, shapes: Sequence[Architecture]) -> list[dict[str, Any]]:
        assert self.measure is not None
        timed = self.measure(dict(enumerate(shapes)))
        return [{"architecture": one.as_dict(), "latency": [*astuple(timed[i])]} for i, one in enumerate(shapes)]

    def _regress(self, rows: Sequence[Mapping[str, Any]]) -> None:
        timed = read_design(rows)
        # if the machine became slower between the rounds, the teacher did too
        self._teacher_ms = float(np.median([latency.teacher_ms for latency in timed.values()]))
        self.model = LatencyModel.fit({one: self._teacher_ms / latency.speedup for one, latency in timed.items()})


def read_design(rows: Sequence[Mapping[str, Any]]) -> dict[Architecture, Latency]:
    """The latencies that `PredictedBudget.time` returned."""
    return {Architecture(**row["architecture"]): Latency(*row["latency"]) for row in rows}


def _spread(shapes: Sequence[Architecture], points: np.ndarray) -> list[Architecture]:
    """Shapes each of which is, by its features, the farthest from those before it."""
    gaps = np.full(len(shapes), np.inf)
    chosen: list[Architecture] = []
    while len(chosen) < SPREAD and gaps.max() > 0:
        index = int(gaps.argmax())
        chosen.append(shapes[index])
        gaps = np.minimum(gaps, np.square(points - points[index]).sum(1))
    return chosen
