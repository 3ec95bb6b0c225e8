"""Optuna's own samplers as controllers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from ..space import Architecture, SearchSpace
from .base import ArchitectureSampler, distributions


class OptunaSampler(ArchitectureSampler):
    """One of Optuna's own samplers, drawn from until it names an available member of the space.

    Args:
        kind: ``"tpe"``, ``"gp"``, ``"nsga2"`` or ``"random"``.
        space: The search space.
        candidates_per_episode: Trials in an episode; also TPE's and GP's random start and NSGA-II's population.
        seed: What all random choices are drawn from.
        attempts: Draws before an architecture is chosen at random.
    """

    def __init__(
        self, kind: str, space: SearchSpace, candidates_per_episode: int, seed: int = 0, attempts: int = 32
    ) -> None:
        super().__init__(space, candidates_per_episode, seed)
        self.kind = kind
        self.attempts = attempts

    def _make(self, seed: int) -> BaseSampler:
        startup = self.candidates_per_episode
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if self.kind == "tpe":
                return optuna.samplers.TPESampler(
                    multivariate=True, constant_liar=True, n_startup_trials=startup, seed=seed
                )
            if self.kind == "gp":
                return optuna.samplers.GPSampler(n_startup_trials=startup, seed=seed)
            if self.kind == "nsga2":
                return optuna.samplers.NSGAIISampler(population_size=max(startup, 2), seed=seed)
            return optuna.samplers.RandomSampler(seed=seed)

    def choose(self, study: optuna.Study, trial: FrozenTrial, available: Sequence[Architecture]) -> Architecture:
        """Draw until the architecture is available."""
        taken = self.taken(study, trial.number)
        space = distributions(self.space)
        for attempt in range(self.attempts):
            # a fresh sampler: its choice must not depend on draws that a killed process made
            sampler = self._make(self.random_for(self.kind, trial.number, attempt).getrandbits(32))
            inferred = sampler.infer_relative_search_space(study, trial)
            params = sampler.sample_relative(study, trial, {k: v for k, v in inferred.items() if k in space})
            for name, distribution in space.items():
                if name not in params:
                    params[name] = sampler.sample_independent(study, trial, name, distribution)
            architecture = Architecture.from_params(params)
            if self.space.per_layer:  # hardly any draw has heads that divide in every layer
                architecture = self.space.with_dividing_heads(architecture)
            if architecture in self.space and architecture not in taken:
                return architecture
        return super().choose(study, trial, available)
