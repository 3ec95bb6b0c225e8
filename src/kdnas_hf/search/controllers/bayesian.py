"""Bayesian optimisation over the whole space: a Gaussian process of the reward, and expected improvement."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Kernel, Matern, WhiteKernel

from ..architecture import CHOICES, PER_LAYER_FIELDS, Architecture
from ..space import SearchSpace
from .base import ArchitectureSampler, architecture_of, is_feasible, value_of


class ArchitectureFeatures:
    """Architectures as vectors: logarithms of what is a number, one indicator for each choice of what is a name.

    Each number is scaled so that the choices of the space lie between 0 and 1. What differs by layer is the mean over
    layers, and how much higher it is in the second half of them than in the first. The last feature is the size of all
    layers together, which what a student learns and what it costs depend on most.

    Args:
        space: The search space.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        low, high = np.log(space.parameter_range)
        self._smallest, self._range = low, max(high - low, 1e-9)
        self._example = space.sample(Random(0), 1)

    def __call__(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """Features.

        Returns:
            ``(architectures, features)``.
        """
        if not architectures:
            return self(self._example)[:0]
        columns: list[Any] = []
        for name in CHOICES:
            values = getattr(self.space, name)
            if len(values) == 1:
                continue
            if self.space.per_layer and name in PER_LAYER_FIELDS:
                columns += self._by_layer(values, [one.per_layer(name) for one in architectures])
            else:
                columns += _scaled(values, [getattr(one, name) for one in architectures]).T.tolist()
        if len(self.space.embedding_size) > 1:
            columns.append([one.word_embedding_size / one.hidden_size for one in architectures])
        sizes = np.log([architecture.encoder_parameters for architecture in architectures])
        columns.append((sizes - self._smallest) / self._range)
        return np.column_stack(columns)

    def _by_layer(self, values: Sequence[Any], chosen: Sequence[Sequence[Any]]) -> list[list[float]]:
        """Mean over layers, and second half less first, of each scaled value: ``(features, architectures)``."""
        depths = np.array([len(one) for one in chosen])
        layers = _scaled(values, [value for one in chosen for value in one])
        firsts = np.cumsum(depths) - depths
        means = np.add.reduceat(layers, firsts) / depths[:, None]
        changes = np.add.reduceat(layers * np.concatenate([_change(depth) for depth in depths]), firsts)
        return np.hstack([means, changes]).T.tolist()


@cache
def _change(depth: int) -> np.ndarray:
    """What weighs layers so that their sum is the mean of the second half less that of the first: ``(depth, 1)``."""
    half = depth // 2
    weights = np.zeros((depth, 1))
    if half:
        weights[:half], weights[-half:] = -1 / half, 1 / half
    return weights


def _scaled(values: Sequence[Any], chosen: Sequence[Any]) -> np.ndarray:
    """What was chosen of some values, as numbers between 0 and 1: ``(chosen, features)``."""
    if isinstance(values[0], str):
        return np.array([[float(one == value) for value in values[1:]] for one in chosen])
    low, high = np.log(min(values)), np.log(max(values))
    return ((np.log(chosen) - low) / (high - low))[:, None]


class BayesianSampler(ArchitectureSampler):
    """Expected improvement of a Gaussian process, over every architecture of the space that is not taken.

    Of a space that is too large, over a pool of them (see `SearchSpace.pool`).

    The first episode is spread over the space: each candidate is the one farthest from those before it. Later, rewards
    are regressed by a Gaussian process with a Matérn kernel, one length scale for each feature and a noise that is
    estimated. The candidates of an episode are chosen one after the other; those that have no result yet count as if
    they had the predicted one ("kriging believer", Ginsbourger et al. 2010). Hard constraints are regressed alike, and
    the expected improvement is multiplied by the probability that they hold (Gardner et al. 2014).

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
        self._fitted: tuple[tuple[int, int], Surrogate | FrontSurrogate] | None = None

    def choose(self, study: optuna.Study, trial: FrozenTrial, available: Sequence[Architecture]) -> Architecture:
        """Choose what promises most; in the first episode, what is farthest from the others."""
        episode = self.episode_of(trial.number)
        measured = self.measured_before(study, episode)
        pending = [
            architecture
            for other in study.get_trials(deepcopy=False)
            if self.episode_of(other.number) == episode and other.number < trial.number
            if (architecture := architecture_of(other)) is not None
        ]
        if not measured:
            return self._farthest(pending, available) if pending else super().choose(study, trial, available)
        stopped = self.stopped_before(study, episode)
        surrogate = self._surrogate(episode, measured, stopped)
        gains = surrogate.gain(self.features(available), self.features(pending))
        return available[int(np.argmax(gains))]

    def _farthest(self, chosen: Sequence[Architecture], available: Sequence[Architecture]) -> Architecture:
        differences = self.features(available)[:, None] - self.features(chosen)[None]
        nearest = np.square(differences).sum(-1).min(1)
        return available[int(np.argmax(nearest))]

    def _surrogate(
        self, episode: int, measured: Sequence[FrozenTrial], stopped: Sequence[FrozenTrial]
    ) -> Surrogate | FrontSurrogate:
        """Fitted once an episode, on what the episodes before it measured."""
        key = (episode, len(measured) + len(stopped))
        if self._fitted is None or self._fitted[0] != key:
            seed = self.random_for("surrogate", episode).getrandbits(31)
            trials = [*measured, *stopped]
            architectures = [architecture for one in trials if (architecture := architecture_of(one)) is not None]
            kind = Surrogate if len(trials[0].values) == 1 else FrontSurrogate
            self._fitted = (key, kind(self.features(architectures), trials, seed))
        return self._fitted[1]


class Surrogate:
    """Gaussian processes of the rewards and of the constraints of what was measured.

    Args:
        features: ``(trials, features)``.
        trials: What was measured, and what was stopped early.
        seed: Of the restarts of the fit.
    """

    def __init__(self, features: np.ndarray, trials: Sequence[FrozenTrial], seed: int) -> None:
        rewards = np.array([value_of(trial) for trial in trials])
        whole = np.array([trial.state is TrialState.COMPLETE for trial in trials])
        share = np.array([trained_share(trial, trials) for trial in trials])
        feasible = whole & np.array([is_feasible(trial) for trial in trials])
        self.leaders = features[feasible] if feasible.any() else features[whole]
        self.stops_early = not whole.all()
        fidelity = np.column_stack([features, share]) if self.stops_early else features
        self.reward = GaussianProcess.fit(fidelity, rewards, seed)
        self.constraints = Constraints(features, trials, seed)

    def gain(self, candidates: np.ndarray, pending: np.ndarray) -> np.ndarray:
        """What each candidate is expected to add to the best feasible, times the chance that it is feasible itself.

        Args:
            candidates: ``(candidates, features)``.
            pending: ``(architectures, features)`` of what has no result yet.

        Returns:
            ``(candidates,)``.
        """
        process = self.reward.believing(self._trained(pending))
        # the best reward measured is the best noise as well: what the process believes of it is compared
        best = process.predict(self._trained(np.concatenate([self.leaders, pending])))[0].max()
        mean, deviation = process.predict(self._trained(candidates))
        return expected_improvement(mean, deviation, best) * self.constraints.chance(candidates)

    def _trained(self, features: np.ndarray) -> np.ndarray:
        """Features for the process of rewards, as of architectures that train to the end."""
        return np.column_stack([features, np.ones(len(features))]) if self.stops_early else features


def trained_share(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> float:
    """The share of a mini-KD's steps that a candidate trained: 1 if it was not stopped early."""
    if trial.state is TrialState.COMPLETE or trial.last_step is None:
        return float(trial.state is TrialState.COMPLETE)
    return trial.last_step / max(other.last_step for other in trials if other.last_step is not None)


class FrontSurrogate:
    """Gaussian processes of the quality and of the latency of what was measured, for a search of the Pareto front.

    A candidate is worth the hypervolume that it is expected to add to what the front dominates: between its latency,
    on a logarithmic scale, and that of the slowest measured, above what the front has there. Latency
    hardly varies, so that its predicted value is taken, and the rest is a sum of expected improvements (Emmerich et al.
    2006, in two dimensions of which one is known).

    Args:
        features: ``(trials, features)``.
        trials: What was measured; values are quality and latency as a share of the teacher's.
        seed: Of the restarts of the fit.
    """

    def __init__(self, features: np.ndarray, trials: Sequence[FrozenTrial], seed: int) -> None:
        values = np.array([trial.values for trial in trials])
        self.features = features[[is_feasible(trial) for trial in trials]]
        self.quality = GaussianProcess.fit(features, values[:, 0], seed)
        self.latency = GaussianProcess.fit(features, np.log(values[:, 1]), seed)
        self.slowest = np.log(values[:, 1]).max()
        self.constraints = Constraints(features, trials, seed)

    def gain(self, candidates: np.ndarray, pending: np.ndarray) -> np.ndarray:
        """The hypervolume that each candidate is expected to add, times the chance that it is feasible.

        Args:
            candidates: ``(candidates, features)``.
            pending: ``(architectures, features)`` of what has no result yet.

        Returns:
            ``(candidates,)``.
        """
        process = self.quality.believing(pending)
        known = np.concatenate([self.features, pending])
        mean, deviation = process.predict(candidates)
        latency = self.latency.predict(candidates)[0]
        # what the front has: nothing up to the fastest, then a step at each of the others
        edges, levels = [latency.min()], [0.0]
        if len(known):
            at, quality = self.latency.predict(known)[0], process.predict(known)[0]
            order = np.argsort(at)
            edges += at[order].tolist()
            levels += np.maximum.accumulate(np.maximum(quality[order], 0.0)).tolist()
        ends = [*edges[1:], max(self.slowest, latency.max())]
        found = np.zeros(len(candidates))
        for start, end, level in zip(edges, ends, levels, strict=True):
            width = np.maximum(end - np.maximum(start, latency), 0.0)
            if width.any():
                found += width * expected_improvement(mean, deviation, level)
        return found * self.constraints.chance(candidates)


class Constraints:
    """Gaussian processes of by how much each hard constraint is missed.

    Args:
        features: ``(trials, features)``.
        trials: What was measured.
        seed: Of the restarts of the fit.
    """

    def __init__(self, features: np.ndarray, trials: Sequence[FrozenTrial], seed: int) -> None:
        self.processes = []
        for name in sorted({name for trial in trials for name in trial.constraints}):
            known = [index for index, trial in enumerate(trials) if name in trial.constraints]
            values = np.array([trials[index].constraints[name] for index in known])
            if (values > 0).any():  # else nothing has missed it
                self.processes.append(GaussianProcess.fit(features[known], values, seed))

    def chance(self, candidates: np.ndarray) -> np.ndarray:
        """The probability that each candidate meets them all: ``(candidates,)``."""
        found = np.ones(len(candidates))
        for process in self.processes:
            mean, deviation = process.predict(candidates)
            found *= norm.cdf(-mean / deviation)
        return found


def expected_improvement(mean: np.ndarray, deviation: np.ndarray, level: float) -> np.ndarray:
    """By how much normal variables are expected to be above a level, counted as 0 below it."""
    above = (mean - level) / deviation
    return deviation * (above * norm.cdf(above) + norm.pdf(above))


class GaussianProcess:
    """Regression with a Matérn 5/2 kernel, one length scale for each feature, and noise.

    Args:
        kernel: Of the signal, for standardised values.
        noise: Variance of the noise, of standardised values.
        features: ``(points, features)``.
        values: ``(points,)``.
    """

    def __init__(self, kernel: Kernel, noise: float, features: np.ndarray, values: np.ndarray) -> None:
        self.kernel, self.noise, self.features, self.values = kernel, noise, features, values
        self.mean, self.scale = values.mean(), max(values.std(), 1e-9)
        self.process = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None)
        self.process.fit(features, (values - self.mean) / self.scale)

    @classmethod
    def fit(cls, features: np.ndarray, values: np.ndarray, seed: int) -> GaussianProcess:
        """Find kernel and noise by maximum likelihood."""
        signal = ConstantKernel(1.0, (0.1, 10.0)) * Matern(np.ones(features.shape[1]), (0.2, 20.0), nu=2.5)
        process = GaussianProcessRegressor(
            signal + WhiteKernel(0.1, (1e-4, 1.0)), n_restarts_optimizer=1, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # a length scale at its bound: a choice that matters not
            process.fit(features, (values - values.mean()) / max(values.std(), 1e-9))
        return cls(process.kernel_.k1, process.kernel_.k2.noise_level, features, values)

    def believing(self, features: np.ndarray) -> GaussianProcess:
        """The process as it would be if these points had turned out as it predicts."""
        if len(features) == 0:
            return self
        values = np.concatenate([self.values, self.predict(features)[0]])
        return GaussianProcess(self.kernel, self.noise, np.concatenate([self.features, features]), values)

    def left_out_errors(self) -> np.ndarray:
        """By how much each value differs from its prediction by the others: ``(points,)``.

        (Rasmussen and Williams 2006, equation 5.12.)
        """
        covariance = self.kernel(self.features) + self.noise * np.eye(len(self.values))
        precision = np.linalg.inv(covariance)
        return precision @ ((self.values - self.mean) / self.scale) / np.diag(precision) * self.scale

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, without noise.

        Returns:
            Both ``(points,)``.
        """
        mean, deviation = self.process.predict(features, return_std=True)
        return mean * self.scale + self.mean, np.maximum(deviation, 1e-6) * self.scale
