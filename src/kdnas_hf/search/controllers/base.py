"""What all controllers share: they are Optuna samplers that propose only members of the space, and none twice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ...students import Architecture
from ...utils.random_state import seed_of
from ..space import SearchSpace
from ..trial import DIVERGED, OUT_OF_MEMORY, TOO_SLOW

# user attributes of a trial; its reward where its value is something else: stopped early, or of two objectives
EPISODE, FAILURE, REWARD = "episode", "failure", "reward"
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


@dataclass(frozen=True)
class Observation:
    """What a finished trial says of its architecture.

    Attributes:
        architecture: The architecture.
        episode: The episode that it was chosen in; -1 if it was taken over from another search.
        values: The study's; what it promised if it was stopped early; the worst so far if it failed.
        constraints: By how much it misses each hard constraint that was measured.
        share: The share of a mini-KD that it trained; 0 if it was too slow to be trained.
        failed: Whether it diverged, or did not fit in memory.
    """

    architecture: Architecture
    episode: int
    values: Sequence[float]
    constraints: dict[str, float]
    share: float
    failed: bool

    @property
    def is_feasible(self) -> bool:
        """Whether it was trained to the end and meets every hard constraint."""
        return self.share == 1 and not self.failed and all(excess <= 0 for excess in self.constraints.values())


def observe(trials: Sequence[FrozenTrial], signs: Sequence[int]) -> list[Observation]:
    """What finished trials say, unless their workers were killed; signs are 1 for a maximised value, -1 for another."""
    steps = max((trial.last_step or 0 for trial in trials), default=0)
    complete = [trial.values for trial in trials if trial.state is TrialState.COMPLETE]
    worst = [sign * min((sign * one[i] for one in complete), default=0.0) for i, sign in enumerate(signs)]
    found = []
    for trial in trials:
        architecture, said = architecture_of(trial), trial.user_attrs
        failed = said.get(FAILURE) in (DIVERGED, OUT_OF_MEMORY)
        if trial.state is TrialState.COMPLETE:
            values, share = trial.values, 1.0
        elif trial.state is TrialState.PRUNED and REWARD in said:
            values, share = [said[REWARD]], (trial.last_step or 0) / max(steps, 1)
        elif failed or said.get(FAILURE) == TOO_SLOW:
            values, share = worst, float(failed)
        else:
            continue
        if architecture is not None:
            episode = said.get(EPISODE, -1)
            found.append(Observation(architecture, episode, values, trial.constraints, share, failed))
    return found


def ranked(observed: Iterable[Observation]) -> list[Observation]:
    """What was trained, the best first: what is feasible, then by its first value."""
    trained = [one for one in observed if one.share > 0 and not one.failed]
    return sorted(trained, key=lambda one: (not one.is_feasible, -one.values[0]))


class ArchitectureSampler(BaseSampler):
    """Base of all controllers: proposes only members of the space, and none twice; by itself at random.

    What it proposes depends on the seed, the number of the trial and what the episodes before have shown alone, so that
    a search that was killed goes on with the same candidates. A trial's episode is its user attribute ``episode``.

    Args:
        space: The search space.
        candidates_per_episode: Trials in an episode.
        seed: What all random choices are drawn from.

    Attributes:
        asynchronous: Whether all that has finished counts, rather than the episodes before.
        admits: Says which of some architectures may be proposed: ``(architectures,)`` booleans.
    """

    def __init__(self, space: SearchSpace, candidates_per_episode: int, seed: int = 0) -> None:
        self.space, self.candidates_per_episode, self.seed = space, candidates_per_episode, seed
        self.asynchronous = False
        self.admits: Callable[[Sequence[Architecture]], np.ndarray] | None = None

    def known(self, study: optuna.Study, number: int) -> tuple[int, list[Observation], list[Architecture]]:
        """A trial's episode, or the next while it says none; what was observed before it; and what is pending."""
        trials = study.get_trials(deepcopy=False)
        episodes = {one.number: one.user_attrs[EPISODE] for one in trials if EPISODE in one.user_attrs}
        episode = episodes.get(number, max(episodes.values(), default=-1) + 1)

        def counts(one: FrozenTrial) -> bool:
            return one.state.is_finished() and (self.asynchronous or episodes.get(one.number, -1) < episode)

        signs = [1 if direction is StudyDirection.MAXIMIZE else -1 for direction in study.directions]
        past = observe([one for one in trials if counts(one)], signs)
        observed = [one for one in past if one.architecture in self.space]
        others = [one for one in trials if one.number < number or (self.asynchronous and one.number > number)]
        pending = [architecture_of(one) for one in others if not counts(one)]
        return episode, observed, [one for one in pending if one is not None]

    def allowed(self, study: optuna.Study, number: int, members: Iterable[Architecture]) -> list[Architecture]:
        """Those that no other trial has taken, and that are admitted."""
        taken = {architecture_of(one) for one in study.get_trials(deepcopy=False) if one.number != number}
        free = [one for one in members if one not in taken]
        admitted = self.admits(free) if self.admits is not None and free else [True] * len(free)
        return [one for one, is_admitted in zip(free, admitted, strict=True) if is_admitted]

    def available(self, study: optuna.Study, number: int, around: Iterable[Observation] = ()) -> list[Architecture]:
        """The members of the space that a trial may be; of a large space those of a pool around the best observed."""
        leaders = [one.architecture for one in ranked(around)[:LEADERS]]
        return self.allowed(study, number, self.space.pool(self.random_for("pool", number), leaders))

    def promise(self, study: optuna.Study, number: int) -> float | None:
        """What the next trial is expected to add to the best reward, as a share of it; None where that is not known."""
        return None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space: architectures are chosen jointly."""
        return distributions(self.space)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        """Choose one architecture; RuntimeError if none is left."""
        available = self.available(study, trial.number)
        if not available:
            raise RuntimeError(f"all {self.space.size} architectures of the space are taken, or are not admitted.")
        return self.space.encode(self.choose(study, trial.number, available))

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, distribution: Any) -> Any:
        """Never needed: every choice is in the relative search space."""
        raise RuntimeError(f"{param_name!r} is no choice of the search space.")

    def random_for(self, *what: int | str) -> random.Random:
        """A random generator that depends on the seed and on ``what`` alone."""
        return random.Random(seed_of(self.seed, *what))

    def choose(self, study: optuna.Study, number: int, available: Sequence[Architecture]) -> Architecture:
        """Choose an architecture that is available: here at random, all depths equally likely."""
        depths = Counter(one.num_hidden_layers for one in available)
        weights = [1 / depths[one.num_hidden_layers] for one in available]
        return self.random_for("random", number).choices(available, weights)[0]
