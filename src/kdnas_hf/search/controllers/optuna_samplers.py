"""Optuna's own samplers as controllers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import optuna
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from ..space import Architecture, SearchSpace
from ..trial import TOO_SLOW
from .base import ArchitectureSampler, distributions, worst

GENERATION = "NSGAIISampler:generation"  # system attribute of a trial
logging.getLogger("optuna.storages._in_memory").setLevel(logging.WARNING)  # views are no studies to tell of


class OptunaSampler(ArchitectureSampler):
    """One of Optuna's own samplers, drawn from until it names an available member of the space.

    It sees a view of the study, in which what failed is complete, with the worst value so far and a constraint that it
    misses: Optuna's samplers never look at a failed trial.

    Args:
        kind: ``"tpe"``, ``"gp"`` or ``"nsga2"``.
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

    def choose(self, study: optuna.Study, number: int, available: Sequence[Architecture]) -> Architecture:
        """Draw until the architecture is available."""
        taken, space = self.taken(study, number), distributions(self.space)
        view = self.view(study, number)
        # a fresh sampler: its choice must not depend on draws that a killed process made
        view.sampler = self._make(self.random_for(self.kind, number).getrandbits(32))
        for _ in range(self.attempts):
            # what is drawn and not available stays running in the view, where others are drawn then
            drawn = self.space.decode(view.ask(space).params)
            if drawn in self.space and self.allowed([drawn], taken):
                return drawn
        return super().choose(study, number, available)

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
            return optuna.samplers.NSGAIISampler(population_size=max(startup, 2), seed=seed)

    def view(self, study: optuna.Study, number: int) -> optuna.Study:
        """What counts when a trial is chosen, as a study in memory: all trials have values and the same constraints."""
        _, observed, pending = self.known(study, number)
        signs = [1 if direction is StudyDirection.MAXIMIZE else -1 for direction in study.directions]
        floor, space = worst(observed, signs), distributions(self.space)
        names = {name for one in observed for name in one.constraints}
        reasons = {one.failure for one in observed} - {None, TOO_SLOW}
        view = optuna.create_study(directions=study.directions)
        for one in observed:
            stopped = one.share < 1 and one.values is not None
            trial = create_trial(
                state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
                values=None if stopped else one.values or floor,
                intermediate_values={round(1000 * one.share): one.values[0]} if stopped and one.values else None,
                params=self.space.encode(one.architecture),
                distributions=space,
                constraints=dict.fromkeys(names, 0.0)
                | dict(one.constraints)
                | {reason: 1.0 if one.failure == reason else -1.0 for reason in reasons},
                system_attrs={GENERATION: one.episode + 1},
            )
            view.add_trial(trial)
        for architecture in pending:
            params = self.space.encode(architecture)
            view.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=space))
        return view
