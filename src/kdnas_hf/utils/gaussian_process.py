"""Regression by a Gaussian process, and what it expects of a point that was not measured."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Kernel, Matern, WhiteKernel


class GaussianProcess:
    """Regression with a Matérn 5/2 kernel, one length scale for each feature, and noise.

    Kernel and noise, a variance, are those of values, ``(points,)``, less ``mean`` and over ``scale``. Longer length
    scales than here would let a few points be explained by one feature alone.
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
        kernel = ConstantKernel(1.0, (0.1, 10.0)) * Matern(np.ones(features.shape[1]), (0.2, 3.0), nu=2.5)
        kernel += WhiteKernel(0.1, (1e-4, 1.0))
        process = GaussianProcessRegressor(kernel, n_restarts_optimizer=1, random_state=seed)
        mean, scale = values.mean(), values.std() or 1.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound: it matters not
            process.fit(features, (values - mean) / scale)
        return cls(process.kernel_.k1, process.kernel_.k2.noise_level, features, values, mean, scale)

    def believing(self, features: np.ndarray) -> GaussianProcess:
        """The process as it would be if these points had turned out as it predicts."""
        if len(features) == 0:
            return self
        values = np.concatenate([self.values, self.predict(features)[0]])
        known = np.concatenate([self.features, features])
        return GaussianProcess(self.kernel, self.noise, known, values, self.mean, self.scale)

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, without noise: both ``(points,)``."""
        mean, deviation = self.process.predict(features, return_std=True)
        return mean * self.scale + self.mean, np.maximum(deviation, 1e-6) * self.scale


def expected_improvement(mean: np.ndarray, deviation: np.ndarray, level: Any) -> np.ndarray:
    """By how much normal variables are expected to be above a level, counted as 0 below it."""
    above = (mean - level) / deviation
    return deviation * (above * norm.cdf(above) + norm.pdf(above))
