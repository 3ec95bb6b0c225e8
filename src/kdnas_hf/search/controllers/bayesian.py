"""Bayesian optimisation over the whole space: a Gaussian process of the reward, and expected improvement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna
from scipy.stats import norm

from ..architecture import Architecture
from ..space import SearchSpace
from ..trial import OUT_OF_MEMORY, TOO_SLOW
from .base import ArchitectureSampler, Observation, leaders_of, worst
from .gaussian_process import ArchitectureFeatures, GaussianProcess

__all__ = ["ArchitectureFeatures", "BayesianSampler", "GaussianProcess"]


class BayesianSampler(ArchitectureSampler):
    """Expected improvement of a Gaussian process, over every architecture of the space that is not taken.

    Of a space that is too large, over a pool of them (see `SearchSpace.pool`).

    The first episode is spread over the space: each candidate is the one farthest from those before it. Later, rewards
    are regressed by a Gaussian process with a Matérn kernel, one length scale for each feature and a noise that is
    estimated. The candidates of an episode are chosen one after the other; those that have no result yet count as if
    they had the predicted one ("kriging believer", Ginsbourger et al. 2010). Hard constraints are regressed alike, and
    the expected improvement is multiplied by the probability that they hold (Gardner et al. 2014). To train at all, and
    to fit in memory, are such constraints as soon as something failed.

    Of a study of two objectives the gain is in the hypervolume that its Pareto front dominates: see `FrontSurrogate`.

    Where successive halving stopped candidates, what they promised is regressed with the rest: the share of the steps
    that each trained is a feature (as fidelity is in Kandasamy et al. 2017, arXiv 1703.06240), and what is predicted is
    the reward after a whole mini-KD.

    Args:
        space: The search space.
        candidates_per_episode: Trials in an episode.
        seed: What all random choices are drawn from.
    """

    def __init__(self, space: SearchSpace, candidates_per_episode: int, seed: int = 0) -> None:
        super().__init__(space, candidates_per_episode, seed)
        self.features = ArchitectureFeatures(space)
        self._fitted: tuple[tuple[int, int], Surrogate] | None = None

    def choose(self, study: optuna.Study, number: int, available: Sequence[Architecture]) -> Architecture:
        """Choose what promises most; while nothing is observed, what is farthest from the others."""
        episode, observed, pending = self.known(study, number)
        if not observed:
            return self._farthest(pending, available) if pending else super().choose(study, number, available)
        if not self.space.is_enumerable:
            available = self.available(study, number, leaders_of(observed))
        surrogate = self._surrogate(episode, observed)
        return available[int(np.argmax(surrogate.gain(self.features(available), self.features(pending))))]

    def promise(self, study: optuna.Study, number: int) -> float | None:
        """See `ArchitectureSampler`."""
        episode, observed, pending = self.known(study, number)
        rewards = [one.values[0] for one in observed if one.is_feasible and one.values]
        if not rewards or max(rewards) <= 0 or len(study.directions) > 1:
            return None
        available = self.available(study, number, leaders_of(observed))
        gains = self._surrogate(episode, observed).gain(self.features(available), self.features(pending))
        return float(gains.max(initial=0.0)) / max(rewards)

    def _farthest(self, chosen: Sequence[Architecture], available: Sequence[Architecture]) -> Architecture:
        differences = self.features(available)[:, None] - self.features(chosen)[None]
        nearest = np.square(differences).sum(-1).min(1)
        return available[int(np.argmax(nearest))]

    def _surrogate(self, episode: int, observed: Sequence[Observation]) -> Surrogate:
        """Fitted once for what is observed."""
        key = (episode, len(observed))
        if self._fitted is None or self._fitted[0] != key:
            seed = self.random_for("surrogate", episode).getrandbits(31)
            kind = FrontSurrogate if any(len(one.values or ()) > 1 for one in observed) else Surrogate
            self._fitted = (key, kind(self.features([one.architecture for one in observed]), observed, seed))
        return self._fitted[1]


class Surrogate:
    """Gaussian processes of the rewards and of the constraints of what was observed.

    Args:
        features: ``(observations, features)``.
        observed: What was observed.
        seed: Of the restarts of the fit.
    """

    failures = "chance"

    def __init__(self, features: np.ndarray, observed: Sequence[Observation], seed: int) -> None:
        self.constraints = Constraints(features, observed, seed, self.failures != "floor")
        self.leaders = features[[one.is_feasible for one in observed]]
        if self.failures != "chance":
            from dataclasses import replace

            from ..trial import TOO_SLOW

            signs = [1, -1][: max((len(one.values or ()) for one in observed), default=1)] or [1]
            floor = tuple(worst(observed, signs))
            observed = [
                replace(one, values=floor) if one.values is None and one.failure != TOO_SLOW else one
                for one in observed
            ]
        valued = [one.values is not None for one in observed]
        if len(self.leaders):
            self._fit(features[valued], [one for one in observed if one.values is not None], seed)

    def _fit(self, features: np.ndarray, observed: Sequence[Observation], seed: int) -> None:
        share = np.array([one.share for one in observed])
        self.stops_early = bool((share < 1).any())
        values = np.array([one.values for one in observed])[:, 0]
        self.process = GaussianProcess.fit(
            np.column_stack([features, share]) if self.stops_early else features, values, seed
        )

    def gain(self, candidates: np.ndarray, pending: np.ndarray) -> np.ndarray:
        """What each candidate is expected to add to the best feasible, times the chance that it is feasible itself.

        Where nothing feasible is known, the logarithm of that chance alone.

        Args:
            candidates: ``(candidates, features)``.
            pending: ``(architectures, features)`` of what has no result yet.

        Returns:
            ``(candidates,)``.
        """
        chance = self.constraints.log_chance(candidates)
        if not len(self.leaders):
            return chance
        likely = pending[self.constraints.log_chance(pending) > np.log(0.5)]
        return self._improvement(candidates, pending, np.concatenate([self.leaders, likely])) * np.exp(chance)

    def _improvement(self, candidates: np.ndarray, pending: np.ndarray, incumbents: np.ndarray) -> np.ndarray:
        process = self.process.believing(self._trained(pending))
        # the best reward measured is the best noise as well: what the process believes of it is compared
        best = process.predict(self._trained(incumbents))[0].max()
        return expected_improvement(*process.predict(self._trained(candidates)), best)

    def _trained(self, features: np.ndarray) -> np.ndarray:
        """Features for the process of rewards, as of architectures that train to the end."""
        return np.column_stack([features, np.ones(len(features))]) if self.stops_early else features


class FrontSurrogate(Surrogate):
    """Gaussian processes of the quality and of the latency of what was observed, for a search of the Pareto front.

    A candidate is worth the hypervolume that it is expected to add to what the front dominates: between its latency,
    on a logarithmic scale, and that of the slowest observed, above what the front has there. Latency
    hardly varies, so that its predicted value is taken, and the rest is a sum of expected improvements (Emmerich et al.
    2006, in two dimensions of which one is known).
    """

    def _fit(self, features: np.ndarray, observed: Sequence[Observation], seed: int) -> None:
        quality, latency = np.array([one.values for one in observed]).T
        self.process = GaussianProcess.fit(features, quality, seed)
        self.latency = GaussianProcess.fit(features, np.log(latency), seed)
        self.slowest = np.log(latency).max()

    def _improvement(self, candidates: np.ndarray, pending: np.ndarray, incumbents: np.ndarray) -> np.ndarray:
        process = self.process.believing(pending)
        mean, deviation = process.predict(candidates)
        latency = self.latency.predict(candidates)[0]
        at, quality = self.latency.predict(incumbents)[0], process.predict(incumbents)[0]
        order = np.argsort(at)
        # what the front has: nothing up to the fastest, then a step at each of the others
        edges = [latency.min(), *at[order], max(self.slowest, latency.max())]
        levels = [0.0, *np.maximum.accumulate(np.maximum(quality[order], 0.0))]
        found = np.zeros(len(candidates))
        for start, end, level in zip(edges, edges[1:], levels, strict=False):
            width = np.maximum(end - np.maximum(start, latency), 0.0)
            if width.any():
                found += width * expected_improvement(mean, deviation, level)
        return found


class Constraints:
    """Gaussian processes of by how much each hard constraint is missed, and of whether training fails.

    Each reason of failure is a constraint of its own: 1 where it was the reason, -1 where training went well. What
    diverged fitted in memory.

    Args:
        features: ``(observations, features)``.
        observed: What was observed.
        seed: Of the restarts of the fit.
    """

    def __init__(self, features: np.ndarray, observed: Sequence[Observation], seed: int, reasons=True) -> None:
        known: dict[str, dict[int, float]] = {}
        for index, one in enumerate(observed):
            for name, excess in one.constraints.items():
                known.setdefault(name, {})[index] = excess
        for reason in {one.failure for one in observed if reasons} - {None, TOO_SLOW}:
            known[reason] = {
                index: 1.0 if one.failure == reason else -1.0
                for index, one in enumerate(observed)
                if one.failure in (None, reason) or (reason == OUT_OF_MEMORY and one.failure != TOO_SLOW)
            }
        self.processes = [
            GaussianProcess.fit(features[list(excess)], np.array(list(excess.values())), seed)
            for _, excess in sorted(known.items())
            if max(excess.values()) > 0  # else nothing has missed it
        ]

    def log_chance(self, candidates: np.ndarray) -> np.ndarray:
        """The logarithm of the probability that each candidate meets them all: ``(candidates,)``."""
        found = np.zeros(len(candidates))
        for process in self.processes if len(candidates) else ():
            mean, deviation = process.predict(candidates)
            found += norm.logcdf(-mean / deviation)
        return found


def expected_improvement(mean: np.ndarray, deviation: np.ndarray, level: float) -> np.ndarray:
    """By how much normal variables are expected to be above a level, counted as 0 below it."""
    above = (mean - level) / deviation
    return deviation * (above * norm.cdf(above) + norm.pdf(above))
