"""Gaussian processes over architectures: what a search believes of a reward, a constraint or a latency."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Kernel, Matern, WhiteKernel

from ..architecture import CHOICES, PER_LAYER_FIELDS, Architecture
from ..space import SearchSpace
from ..trial import Trial

FEWEST = 5  # trials below which nothing is regressed for a posterior


class ArchitectureFeatures:
    """Architectures as vectors: logarithms of what is a number, one indicator for each choice of what is a name.

    Each number is scaled so that the choices of the space lie between 0 and 1. What differs by layer is the mean over
    layers, and how much higher it is in the second half of them than in the first; the teacher's layers that are kept
    are the first, the mean and the last. The last feature is the size of all layers together, which what a student
    learns and what it costs depend on most.

    Args:
        space: The search space.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        low, high = np.log(space.parameter_range)
        self._smallest, self._range = low, max(high - low, 1e-9)

    def __call__(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """Features.

        Returns:
            ``(architectures, features)``.
        """
        if not architectures:
            return self(self.space.sample(Random(0), 1))[:0]
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
        if self.space.teacher_layers is not None:
            kept = [one.per_layer("teacher_layers") for one in architectures]
            places = np.array([[layers[0], np.mean(layers), layers[-1]] for layers in kept])
            columns += (places / max(self.space.teacher_layers)).T.tolist()
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
    """Weights of layers whose weighted sum is the mean of the second half less that of the first: ``(depth, 1)``."""
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


class GaussianProcess:
    """Regression with a Matérn 5/2 kernel, one length scale for each feature, and noise.

    Args:
        kernel: Of the signal, for standardised values.
        noise: Variance of the noise, of standardised values.
        features: ``(points, features)``.
        values: ``(points,)``.
        mean: Of the values, as they are standardised.
        scale: Of the values, as they are standardised.
    """

    def __init__(
        self, kernel: Kernel, noise: float, features: np.ndarray, values: np.ndarray, mean: float, scale: float
    ) -> None:
        self.kernel, self.noise, self.features, self.values = kernel, noise, features, values
        self.mean, self.scale = mean, scale
        self.process = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None)
        self.process.fit(features, (values - mean) / scale)

    @classmethod
    def fit(cls, features: np.ndarray, values: np.ndarray, seed: int) -> GaussianProcess:
        """Find kernel and noise by maximum likelihood."""
        signal = ConstantKernel(1.0, (0.1, 10.0)) * Matern(np.ones(features.shape[1]), (0.2, 20.0), nu=2.5)
        process = GaussianProcessRegressor(
            signal + WhiteKernel(0.1, (1e-4, 1.0)), n_restarts_optimizer=1, random_state=seed
        )
        mean, scale = values.mean(), values.std() or 1.0
        with warnings.catch_warnings():
            # a length scale at its bound: a choice that matters not
            warnings.simplefilter("ignore", ConvergenceWarning)
            process.fit(features, (values - mean) / scale)
        return cls(process.kernel_.k1, process.kernel_.k2.noise_level, features, values, mean, scale)

    def believing(self, features: np.ndarray) -> GaussianProcess:
        """The process as it would be if these points had turned out as it predicts."""
        if len(features) == 0:
            return self
        values = np.concatenate([self.values, self.predict(features)[0]])
        known = np.concatenate([self.features, features])
        return GaussianProcess(self.kernel, self.noise, known, values, self.mean, self.scale)

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


def posterior(space: SearchSpace, trials: Sequence[Trial], seed: int = 0) -> dict[int, tuple[float, float]]:
    """What a Gaussian process believes of the rewards of trials that trained to the end, all noisy.

    Returns:
        By number, mean and standard deviation; of fewer than five trials the reward itself, and 0.
    """
    rewards = {trial.number: trial.reward for trial in trials if trial.is_complete and trial.reward is not None}
    if len(rewards) < FEWEST:
        return {number: (reward, 0.0) for number, reward in rewards.items()}
    features = ArchitectureFeatures(space)([trial.architecture for trial in trials if trial.number in rewards])
    predicted = GaussianProcess.fit(features, np.array(list(rewards.values())), seed).predict(features)
    return {
        number: (float(mean), float(deviation)) for number, mean, deviation in zip(rewards, *predicted, strict=True)
    }
