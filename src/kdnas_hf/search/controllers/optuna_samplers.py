"""Optuna's own samplers as controllers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from functools import partial

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial

from ...students import Architecture
from ..space import SearchSpace
from .base import ArchitectureSampler, distributions

logging.getLogger("optuna.storages._in_memory").setLevel(logging.WARNING)  # views are no studies to tell of


class OptunaSampler(ArchitectureSampler):
    """One of Optuna's own samplers (``tpe``, ``gp``, ``nsga2``), drawn from until it names what is available.

    It sees a view of the study: Optuna's samplers never look at a failed trial. An episode is also TPE's and GP's
    random start and NSGA-II's population.
    """

    def __init__(self, kind: str, space: SearchSpace, candidates_per_episode: int, seed: int = 0) -> None:
        super().__init__(space, candidates_per_episode, seed)
        self.kind = kind

    def choose(self, study: optuna.Study, number: int, available: Sequence[Architecture]) -> Architecture:
        """Draw until the architecture is available, at most 32 times; then at random."""
        view = self.view(study, number)
        # a fresh sampler: its choice must not depend on draws that a killed process made
        view.sampler = self._make(self.random_for(self.kind, number).getrandbits(32))
        for _ in range(32):
            # what is drawn in vain stays a running trial of the view, far from which others are drawn
            drawn = self.space.decode(view.ask(distributions(self.space)).params)
            if drawn in self.space and self.allowed(study, number, [drawn]):
                return drawn
        return super().choose(study, number, available)

    def _make(self, seed: int) -> BaseSampler:
        size, samplers = self.candidates_per_episode, optuna.samplers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if self.kind == "tpe":
                return samplers.TPESampler(multivariate=True, constant_liar=True, n_startup_trials=size, seed=seed)
            if self.kind == "gp":
                return samplers.GPSampler(n_startup_trials=size, seed=seed)
            return samplers.NSGAIISampler(population_size=max(size, 2), seed=seed)

    def view(self, study: optuna.Study, number: int) -> optuna.Study:
        """What counts when a trial is chosen, in memory: failures are complete and miss a constraint of their own."""
        _, observed, pending = self.known(study, number)
        make = partial(create_trial, distributions=distributions(self.space))
        view = optuna.create_study(directions=study.directions)
        names = {name for one in observed for name in one.constraints} | {"fails" for one in observed if one.failed}
        for one in observed:
            constraints = dict.fromkeys(names, 0.0) | one.constraints | ({"fails": 1.0} if one.failed else {})
            params, generation = self.space.encode(one.architecture), {"NSGAIISampler:generation": one.episode + 1}
            view.add_trial(make(values=one.values, params=params, constraints=constraints, system_attrs=generation))
        for architecture in pending:
            view.add_trial(make(state=TrialState.RUNNING, params=self.space.encode(architecture)))
        return view
