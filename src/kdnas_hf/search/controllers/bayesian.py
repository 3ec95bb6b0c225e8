"""Bayesian optimisation over the whole space: a Gaussian process of the reward, and expected improvement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
import optuna
from scipy.stats import norm

from ...students.architecture import CHOICES, PER_LAYER_FIELDS, Architecture
from ...utils.gaussian_process import GaussianProcess, expected_improvement
from ..space import MAX_ENUMERATED, SearchSpace
from ..trial import Trial
from .base import ArchitectureSampler, Observation


class ArchitectureFeatures:
    """Architectures of a space as vectors: logarithms of what is a number, an indicator for each choice of a name.

    Each number is scaled so that the choices of the space lie between 0 and 1. What differs by layer is the mean over
    layers, and how much higher it is in the second half of them than in the first; of the teacher's layers that are
    kept, four at even spacing. The last feature is the size of all layers, which quality and costs depend on most.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.smallest, self.largest = np.log(space.parameter_range)
        self.of = lru_cache(MAX_ENUMERATED)(self._of)

    def __call__(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """Features: ``(architectures, features)``."""
        if not architectures:
            return self(self.space.sample(Random(0), 1))[:0]
        return np.array([self.of(one) for one in architectures])

    def _of(self, architecture: Architecture) -> list[float]:
        space, found = self.space, list[float]()
        for name in CHOICES:
            values = getattr(space, name)
            if len(values) > 1:
                layers = [_scaled(values, value) for value in architecture.per_layer(name)]
                found += _summary(layers) if space.per_layer and name in PER_LAYER_FIELDS else layers[0]
        if len(space.embedding_size) > 1:
            found.append(architecture.word_embedding_size / architecture.hidden_size)
        if space.teacher_layers is not None:
            kept = np.array(architecture.teacher_layers) / max(space.teacher_layers)
            found += np.interp(np.linspace(0, 1, 4), np.linspace(0, 1, len(kept)), kept).tolist()
        size = math.log(architecture.encoder_parameters) - self.smallest
        return [*found, size / max(self.largest - self.smallest, 1e-9)]


def _summary(layers: Sequence[Sequence[float]]) -> list[float]:
    """For each feature of layers the mean, and then that of the second half less that of the first."""
    half, columns = len(layers) // 2, list(zip(*layers, strict=True))
    means = [sum(column) / len(layers) for column in columns]
    return means + [(sum(column[-half:]) - sum(column[:half])) / half if half else 0.0 for column in columns]


def _scaled(values: Sequence[Any], chosen: Any) -> list[float]:
    """What was chosen of some values, as numbers between 0 and 1."""
    if isinstance(values[0], str):
        return [float(chosen == value) for value in values[1:]]
    low, high = math.log(min(values)), math.log(max(values))
    return [(math.log(chosen) - low) / (high - low)]


def posterior(space: SearchSpace, trials: Sequence[Trial], seed: int = 0) -> dict[int, tuple[float, float]]:
    """Mean and standard deviation of the reward of each complete trial, by number, as a Gaussian process believes.

    Rewards are noisy: the highest is the luckiest. Of fewer than five trials they are what was measured, and 0.
    """
    complete = [trial for trial in trials if trial.is_complete and trial.reward is not None]
    rewards = np.array([trial.reward for trial in complete], dtype=float)
    means, deviations = rewards, np.zeros(len(rewards))
    if len(complete) >= 5:
        features = ArchitectureFeatures(space)([trial.architecture for trial in complete])
        means, deviations = GaussianProcess.fit(features, rewards, seed).predict(features)
    return {trial.number: (float(means[i]), float(deviations[i])) for i, trial in enumerate(complete)}


class BayesianSampler(ArchitectureSampler):
    """Expected improvement of a Gaussian process, over every architecture of the space that is not taken.

    The first candidate is the first of the ``usual`` architectures that may be proposed, else a random one. The rest
    of the first episode is spread over the space: each candidate is the one farthest from those before it. Later,
    rewards are regressed. Candidates of an episode are chosen one after the other; those that have no result yet
    count as if they had the predicted one ("kriging believer", Ginsbourger et al. 2010). Hard constraints are
    regressed alike, and the expected improvement is multiplied by the probability that they hold (Gardner et al.
    2014). Not to fail is one of them, and what failed counts as the worst so far ("floor padding", Wakabayashi et al.
    2022): the latter alone keeps on trying where much fails. Of what successive halving stopped, the promise is
    regressed, and the share of the steps that it trained is a feature (as fidelity is in Kandasamy et al. 2017, arXiv
    1703.06240).
    """

    def __init__(
        self, space: SearchSpace, candidates_per_episode: int, seed: int = 0, usual: Sequence[Architecture] = ()
    ) -> None:
        super().__init__(space, candidates_per_episode, seed)
        self.usual = usual
        self.features = ArchitectureFeatures(space)
        self._fitted: tuple[tuple[int, int], Surrogate] | None = None

    def choose(self, study: optuna.Study, number: int, available: Sequence[Architecture]) -> Architecture:
        """Choose what promises most; while nothing tells candidates apart, what is farthest from all others."""
        _, observed, pending = self.known(study, number)
        if not observed and not pending and (able := self.allowed(study, number, self.usual)):
            return able[0]
        if observed and not self.space.is_enumerable:
            available = self.available(study, number, observed)
        gains = self._gains(study, number, available)
        if np.ptp(gains) > 0:
            return available[int(np.argmax(gains))]
        others = [*(one.architecture for one in observed), *pending]
        if not others:
            return super().choose(study, number, available)
        differences = self.features(available)[:, None] - self.features(others)[None]
        return available[int(np.argmax(np.square(differences).sum(-1).min(1)))]

    def promise(self, study: optuna.Study, number: int) -> float | None:
        """See `ArchitectureSampler`."""
        _, observed, _ = self.known(study, number)
        best = max((one.values[0] for one in observed if one.is_feasible), default=0.0)
        if best <= 0 or len(study.directions) > 1:
            return None
        return float(self._gains(study, number, self.available(study, number, observed)).max(initial=0.0)) / best

    def _gains(self, study: optuna.Study, number: int, available: Sequence[Architecture]) -> np.ndarray:
        episode, observed, pending = self.known(study, number)
        if not observed or not available:
            return np.zeros(len(available))
        if self._fitted is None or self._fitted[0] != (episode, len(observed)):  # once for what is observed
            seed = self.random_for("surrogate", episode).getrandbits(31)
            kind = Surrogate if len(observed[0].values) == 1 else FrontSurrogate
            fitted = kind(self.features([one.architecture for one in observed]), observed, seed)
            self._fitted = ((episode, len(observed)), fitted)
        return self._fitted[1].gain(self.features(available), self.features(pending))


class Surrogate:
    """Gaussian processes of the rewards and of the constraints of what was observed; all take features."""

    def __init__(self, features: np.ndarray, observed: Sequence[Observation], seed: int) -> None:
        self.leaders = features[[one.is_feasible for one in observed]]
        self.constraints = []
        excesses = [one.constraints | ({"fails": 2.0 * one.failed - 1} if one.share else {}) for one in observed]
        for name in sorted(set().union(*excesses)):
            known = [name in excess for excess in excesses]
            missed = np.array([excess[name] for excess in excesses if name in excess])
            if (missed > 0).any():
                self.constraints.append(GaussianProcess.fit(features[known], missed, seed))
        if len(self.leaders):
            self._fit(features, np.array([one.values for one in observed]), observed, seed)

    def gain(self, candidates: np.ndarray, pending: np.ndarray) -> np.ndarray:
        """What each is expected to add to the best feasible, times the chance that it is feasible: ``(candidates,)``.

        Where nothing feasible is known, the logarithm of that chance alone.
        """
        chance = self._log_chance(candidates)
        if not len(self.leaders):
            return chance
        likely = pending[self._log_chance(pending) > np.log(0.5)]
        return self._improvement(candidates, pending, np.concatenate([self.leaders, likely])) * np.exp(chance)

    def _log_chance(self, candidates: np.ndarray) -> np.ndarray:
        found = np.zeros(len(candidates))
        for process in self.constraints if len(candidates) else ():
            mean, deviation = process.predict(candidates)
            found += norm.logcdf(-mean / deviation)
        return found

    def _fit(self, features: np.ndarray, values: np.ndarray, observed: Sequence[Observation], seed: int) -> None:
        share = np.array([one.share for one in observed])
        self.process = GaussianProcess.fit(np.column_stack([features, share])[share > 0], values[share > 0, 0], seed)

    def _improvement(self, candidates: np.ndarray, pending: np.ndarray, incumbents: np.ndarray) -> np.ndarray:
        whole = [np.column_stack([one, np.ones(len(one))]) for one in (candidates, pending, incumbents)]
        process = self.process.believing(whole[1])
        # the best reward measured is the best noise as well: what the process believes of it is compared
        return expected_improvement(*process.predict(whole[0]), process.predict(whole[2])[0].max())


class FrontSurrogate(Surrogate):
    """Gaussian processes of the quality and of the latency of what was observed, for a search of the Pareto front.

    A candidate is worth the hypervolume that it is expected to add to what the front dominates: between its latency,
    on a logarithmic scale, and that of the slowest observed, above what the front has there. Latency hardly varies, so
    that its predicted value is taken, and the rest is a sum of expected improvements (Emmerich et al. 2006, in two
    dimensions of which one is known).
    """

    def _fit(self, features: np.ndarray, values: np.ndarray, observed: Sequence[Observation], seed: int) -> None:
        trained = np.array([one.share > 0 for one in observed])
        timed = trained & [not one.failed for one in observed]
        self.process = GaussianProcess.fit(features[trained], values[trained, 0], seed)
        self.latency = GaussianProcess.fit(features[timed], np.log(values[timed, 1]), seed)

    def _improvement(self, candidates: np.ndarray, pending: np.ndarray, incumbents: np.ndarray) -> np.ndarray:
        process, latency = self.process.believing(pending), self.latency.predict(candidates)[0]
        at, quality = self.latency.predict(incumbents)[0], process.predict(incumbents)[0]
        order = np.argsort(at)
        # what the front has: nothing up to the fastest, then a step at each of the others
        edges = np.array([latency.min(), *at[order], max(self.latency.values.max(), latency.max())])
        levels = np.maximum.accumulate([0.0, *quality[order]])
        widths = np.maximum(edges[1:, None] - np.maximum(edges[:-1, None], latency), 0.0)
        return (widths * expected_improvement(*process.predict(candidates), levels[:, None])).sum(0)
