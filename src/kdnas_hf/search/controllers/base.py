"""What all controllers share: they are Optuna samplers that propose only members of the space, and none twice."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from ..space import Architecture, SearchSpace

REWARD = "reward"  # user attribute of a trial whose value is something else: stopped early, or of two objectives
LEADERS = 10  # the best so far, whose neighbours are in the pool of a large space


def architecture_of(trial: FrozenTrial) -> Architecture | None:
    """The architecture of a trial, or None while it has none."""
    try:
        return Architecture.from_params(trial.params)
    except KeyError:
        return None


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The space as Optuna's distributions: one categorical choice for each that is open."""
    return {name: CategoricalDistribution(values) for name, values in space.choices.items()}


def value_of(trial: FrozenTrial) -> float:
    """The reward of a complete trial; of one that was stopped early, what it promised then."""
    return float(trial.user_attrs[REWARD]) if REWARD in trial.user_attrs else trial.values[0]


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial meets every hard constraint."""
    return all(value <= 0 for value in trial.constraints.values())


class ArchitectureSampler(BaseSampler):
    """Base of all controllers: proposes only members of the space, and none twice.

    What it proposes depends on the seed, the number of the trial and the study's finished episodes alone, so that a
    search that was killed goes on with the same candidates. A trial's episode is its number divided by
    ``candidates_per_episode``.

    Args:
        space: The search space.
        candidates_per_episode: Trials in an episode.
        seed: What all random choices are drawn from.
    """

    def __init__(self, space: SearchSpace, candidates_per_episode: int, seed: int = 0) -> None:
        self.space = space
        self.candidates_per_episode = candidates_per_episode
        self.seed = seed
        self.first_number = 0  # trials before this one were taken over from another run

    def episode_of(self, number: int) -> int:
        """Episode of a trial, counted from 0; -1 for all that were taken over from another run."""
        return max((number - self.first_number) // self.candidates_per_episode, -1)

    def measured_before(self, study: optuna.Study, episode: int) -> list[FrozenTrial]:
        """The members of the space that were measured in the episodes before this one."""
        return [
            trial
            for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if self.episode_of(trial.number) < episode and architecture_of(trial) in self.space
        ]

    def stopped_before(self, study: optuna.Study, episode: int) -> list[FrozenTrial]:
        """The members of the space that were stopped early in the episodes before this one."""
        return [
            trial
            for trial in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
            if self.episode_of(trial.number) < episode and REWARD in trial.user_attrs
            if architecture_of(trial) in self.space
        ]

    def taken(self, study: optuna.Study, trial_number: int) -> set[Architecture]:
        """The architectures of all other trials."""
        trials = study.get_trials(deepcopy=False)
        taken = {architecture_of(other) for other in trials if other.number != trial_number}
        return {architecture for architecture in taken if architecture is not None}

    def available(self, study: optuna.Study, trial_number: int) -> list[Architecture]:
        """The members of the space that no other trial has taken; of a large space, of a pool around the best."""
        measured = self.measured_before(study, self.episode_of(trial_number))
        measured.sort(key=lambda trial: (not is_feasible(trial), -value_of(trial), trial.number))
        leaders = [Architecture.from_params(trial.params) for trial in measured[:LEADERS]]
        taken = self.taken(study, trial_number)
        pool = self.space.pool(self.random_for("pool", trial_number), leaders)
        return [architecture for architecture in pool if architecture not in taken]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space: architectures are chosen jointly."""
        return distributions(self.space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Choose one architecture.

        Raises:
            RuntimeError: If every architecture of the space is taken.
        """
        available = self.available(study, trial.number)
        if not available:
            raise RuntimeError(f"all {self.space.size} architectures of the space are taken.")
        return self.space.encode(self.choose(study, trial, available))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never needed: every choice is in the relative search space."""
        raise RuntimeError(f"{param_name!r} is no choice of the search space.")

    def random_for(self, *what: int | str) -> random.Random:
        """A random generator that depends on the seed and on ``what`` alone."""
        digest = hashlib.sha256(":".join(str(part) for part in (self.seed, *what)).encode()).digest()
        return random.Random(int.from_bytes(digest[:8], "big"))

    def choose(self, study: optuna.Study, trial: FrozenTrial, available: Sequence[Architecture]) -> Architecture:
        """Choose an architecture that is available: at random, in this class."""
        random = self.random_for("random", trial.number)
        if self.space.is_enumerable and not self.space.per_layer:
            return random.choice(available)
        taken = self.taken(study, trial.number)
        return next(one for one in self.space.sample(random, len(taken) + 1) if one not in taken)
