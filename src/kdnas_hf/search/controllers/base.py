"""What all controllers share: they are Optuna samplers that propose only members of the space, and none twice."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from ..space import Architecture, SearchSpace
from ..trial import DIVERGED, OUT_OF_MEMORY, TOO_SLOW

# user attributes of a trial
REWARD = "reward"  # where its value is something else: stopped early, or of two objectives
EPISODE = "episode"
FAILURE = "failure"

LEADERS = 10  # the best so far, whose neighbours are in the pool of a large space
POOLS = 5  # that are drawn of a large space until one holds what is admitted


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
        values: The study's values; of a trial that was stopped early what it promised; None if it has none.
        constraints: By how much it misses each hard constraint that was measured.
        share: The share of the steps of its mini-KD that it trained.
        failure: Why it has no values: diverged, out of memory, or too slow to be trained.
    """

    architecture: Architecture
    episode: int
    values: tuple[float, ...] | None
    constraints: Mapping[str, float]
    share: float = 1.0
    failure: str | None = None

    @property
    def is_feasible(self) -> bool:
        """Whether it was trained to the end and meets every hard constraint."""
        return self.values is not None and self.share == 1 and all(excess <= 0 for excess in self.constraints.values())


def observe(trials: Iterable[FrozenTrial]) -> list[Observation]:
    """What finished trials say, by number; those of killed workers say nothing."""
    trials = [trial for trial in trials if trial.state.is_finished()]
    steps = max((trial.last_step or 0 for trial in trials), default=0)
    found = []
    for trial in trials:
        architecture, failure = architecture_of(trial), trial.user_attrs.get(FAILURE)
        values, share = None, 1.0
        if trial.state is TrialState.COMPLETE:
            values = tuple(trial.values)
        elif trial.state is TrialState.PRUNED and REWARD in trial.user_attrs:
            values, share = (float(trial.user_attrs[REWARD]),), (trial.last_step or 0) / max(steps, 1)
        elif failure not in (DIVERGED, OUT_OF_MEMORY, TOO_SLOW):
            continue
        if architecture is not None:
            episode = trial.user_attrs.get(EPISODE, -1)
            found.append(Observation(architecture, episode, values, trial.constraints, share, failure))
    return found


def worst(observations: Iterable[Observation], signs: Sequence[int]) -> list[float]:
    """The worst value of each objective so far: what a failure is worth. 0 where nothing has any.

    Args:
        observations: What was observed.
        signs: For each objective 1 if it is maximised, else -1.
    """
    known = [one.values for one in observations if one.values is not None]
    return [sign * min((sign * values[place] for values in known), default=0.0) for place, sign in enumerate(signs)]


def leaders_of(observed: Sequence[Observation]) -> list[Architecture]:
    """The best architectures of what was observed: feasible ones first, then by value."""
    valued = [one for one in observed if one.values is not None]
    valued.sort(key=lambda one: (not one.is_feasible, -one.values[0]))  # type: ignore[index]
    return [one.architecture for one in valued[:LEADERS]]


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
        admits: Says of architectures whether they may be proposed: ``(architectures,)`` booleans.
    """

    def __init__(self, space: SearchSpace, candidates_per_episode: int, seed: int = 0) -> None:
        self.space = space
        self.candidates_per_episode = candidates_per_episode
        self.seed = seed
        self.asynchronous = False
        self.admits: Callable[[Sequence[Architecture]], np.ndarray] | None = None

    def known(self, study: optuna.Study, number: int) -> tuple[int, list[Observation], list[Architecture]]:
        """What counts when a trial is chosen.

        Returns:
            Its episode, the next where it does not say yet; what was observed of members of the space in the episodes
            before; and what was chosen before it and has no result that counts.
        """
        trials = study.get_trials(deepcopy=False)
        episodes = {trial.number: trial.user_attrs[EPISODE] for trial in trials if EPISODE in trial.user_attrs}
        episode = episodes.get(number, max(episodes.values(), default=-1) + 1)

        def counts(trial: FrozenTrial) -> bool:
            return trial.state.is_finished() and (self.asynchronous or episodes.get(trial.number, -1) < episode)

        observed = [one for one in observe(filter(counts, trials)) if one.architecture in self.space]
        others = [one for one in trials if one.number < number or (self.asynchronous and one.number > number)]
        pending = [architecture_of(trial) for trial in others if not counts(trial)]
        return episode, observed, [architecture for architecture in pending if architecture is not None]

    def available(
        self, study: optuna.Study, number: int, leaders: Sequence[Architecture] = ()
    ) -> Sequence[Architecture]:
        """The members of the space that a trial may be; of a large space those of a pool, with neighbours of leaders."""
        taken = self.taken(study, number)
        for draw in range(1 if self.space.is_enumerable else POOLS):
            found = self.allowed(self.space.pool(self.random_for("pool", number, draw), leaders), taken)
            if found:
                return found
        return []

    def taken(self, study: optuna.Study, number: int) -> set[Architecture | None]:
        """The architectures of all other trials."""
        return {architecture_of(other) for other in study.get_trials(deepcopy=False) if other.number != number}

    def allowed(
        self, architectures: Sequence[Architecture], taken: Collection[Architecture | None]
    ) -> list[Architecture]:
        """Those that are not taken, and that are admitted."""
        found = [one for one in architectures if one not in taken]
        if self.admits is None or not found:
            return found
        return [one for one, admitted in zip(found, self.admits(found), strict=True) if admitted]

    def promise(self, study: optuna.Study, number: int) -> float | None:
        """What the next trial is expected to add to the best reward, as a share of it; None where that is not known."""
        return None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space: architectures are chosen jointly."""
        return distributions(self.space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Choose one architecture.

        Raises:
            RuntimeError: If none is left.
        """
        available = self.available(study, trial.number)
        if not available:
            refused = "" if self.admits is None else ", or predicted to miss the budget"
            raise RuntimeError(f"all {self.space.size:,} architectures of the space are taken{refused}.")
        return self.space.encode(self.choose(study, trial.number, available))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never needed: every choice is in the relative search space."""
        raise RuntimeError(f"{param_name!r} is no choice of the search space.")

    def random_for(self, *what: int | str) -> random.Random:
        """A random generator that depends on the seed and on ``what`` alone."""
        digest = hashlib.sha256(":".join(str(part) for part in (self.seed, *what)).encode()).digest()
        return random.Random(int.from_bytes(digest[:8], "big"))

    def choose(self, study: optuna.Study, number: int, available: Sequence[Architecture]) -> Architecture:
        """Choose an architecture that is available: here at random, all depths equally likely."""
        depths = Counter(one.num_hidden_layers for one in available)
        weights = [1 / depths[one.num_hidden_layers] for one in available]
        return self.random_for("random", number).choices(available, weights)[0]
