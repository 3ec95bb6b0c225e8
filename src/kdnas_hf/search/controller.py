"""Controllers: who chooses an episode's candidates. All are Optuna samplers."""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from .space import CHOICES, Architecture, SearchSpace

CONTROLLERS = ("lstm", "tpe", "gp", "nsga2", "random")


@dataclass(frozen=True)
class EpsilonSchedule:
    """Probability of a random candidate: ``start`` in the first episode, less by ``decay`` in each that follows."""

    start: float = 1.0
    decay: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1:
            raise ValueError(f"epsilon_start={self.start} is not a probability.")
        if self.decay < 0:
            raise ValueError(f"epsilon_decay={self.decay} must not be negative.")

    def __call__(self, episode: int) -> float:
        """The probability in an episode, counted from 0."""
        return max(0.0, self.start - self.decay * episode)


def architecture_of(trial: FrozenTrial) -> Architecture | None:
    """The architecture of a trial, or None while it has none."""
    if any(name not in trial.params for name in CHOICES):
        return None
    return Architecture(**{name: trial.params[name] for name in CHOICES})


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

    def available(self, study: optuna.Study, trial_number: int) -> list[Architecture]:
        """The members of the space that no other trial has taken."""
        trials = study.get_trials(deepcopy=False)
        taken = {architecture_of(other) for other in trials if other.number != trial_number}
        return [architecture for architecture in self.space if architecture not in taken]

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
            raise RuntimeError(f"all {len(self.space)} architectures of the space are taken.")
        return self.choose(study, trial, available).as_dict()

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
        """Choose among the architectures that are available: at random, in this class."""
        return self.random_for("random", trial.number).choice(available)


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The space as Optuna's distributions: one categorical choice per dimension."""
    return {name: CategoricalDistribution(values) for name, values in space.choices.items()}


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
        members = set(available)
        space = distributions(self.space)
        for attempt in range(self.attempts):
            # a fresh sampler: its choice must not depend on draws that a killed process made
            sampler = self._make(self.random_for(self.kind, trial.number, attempt).getrandbits(32))
            inferred = sampler.infer_relative_search_space(study, trial)
            params = sampler.sample_relative(study, trial, {k: v for k, v in inferred.items() if k in space})
            for name, distribution in space.items():
                if name not in params:
                    params[name] = sampler.sample_independent(study, trial, name, distribution)
            architecture = Architecture(**params)
            if architecture in members:
                return architecture
        return super().choose(study, trial, available)


class RewardPredictor(nn.Module):
    """LSTM that reads three architectures and regresses a reward (KD-NAS, arXiv 2303.09639).

    It reads the sequence [best architecture of the previous episode, best so far, this architecture], each as the
    embeddings of its choices, concatenated.

    Args:
        space: The search space.
        embedding_size: Dimensions of a choice's embedding.
        hidden_size: Dimensions of the LSTM's state.
    """

    def __init__(self, space: SearchSpace, embedding_size: int = 16, hidden_size: int = 64) -> None:
        super().__init__()
        self.choices = space.choices
        # index 0 stands for "none yet", before the first episode has ended
        self.embeddings = nn.ModuleList(nn.Embedding(len(v) + 1, embedding_size) for v in self.choices.values())
        self.lstm = nn.LSTM(embedding_size * len(self.choices), hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def encode(self, architecture: Architecture | None) -> list[int]:
        """Indices of an architecture's choices, zeros for None."""
        if architecture is None:
            return [0] * len(self.choices)
        return [values.index(getattr(architecture, name)) + 1 for name, values in self.choices.items()]

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        """Predict rewards.

        Args:
            sequences: ``(batch, 3, choices)`` indices.

        Returns:
            ``(batch,)``.
        """
        embedded = torch.cat([embed(sequences[..., i]) for i, embed in enumerate(self.embeddings)], dim=-1)
        states, _ = self.lstm(embedded)
        return self.head(states[:, -1]).squeeze(-1)

    def fit(
        self, sequences: torch.Tensor, rewards: torch.Tensor, steps: int = 200, learning_rate: float = 3e-3
    ) -> None:
        """Regress rewards by mean squared error with RMSprop, all at once."""
        optimizer = torch.optim.RMSprop(self.parameters(), lr=learning_rate)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(self(sequences), rewards).backward()
            optimizer.step()


class LSTMSampler(ArchitectureSampler):
    """The published controller: an LSTM that predicts rewards, epsilon-greedy (KD-NAS, arXiv 2303.09639).

    At the start of an episode the predictor is trained on everything measured in the episodes before. A candidate is
    then random with probability epsilon, and else the best predicted architecture that is not taken.

    Args:
        space: The search space.
        candidates_per_episode: Trials in an episode.
        seed: What all random choices are drawn from.
        epsilon: Probability of a random candidate.
    """

    def __init__(
        self,
        space: SearchSpace,
        candidates_per_episode: int,
        seed: int = 0,
        epsilon: EpsilonSchedule | None = None,
    ) -> None:
        super().__init__(space, candidates_per_episode, seed)
        self.epsilon = epsilon or EpsilonSchedule()
        self._ranking: tuple[tuple[int, int], list[Architecture]] | None = None

    def choose(self, study: optuna.Study, trial: FrozenTrial, available: Sequence[Architecture]) -> Architecture:
        """Choose at random with probability epsilon, else the best predicted."""
        episode = self.episode_of(trial.number)
        measured = [
            other
            for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if self.episode_of(other.number) < episode and architecture_of(other) in self.space
        ]
        if not measured or self.random_for("epsilon", trial.number).random() < self.epsilon(episode):
            return super().choose(study, trial, available)
        members = set(available)
        return next(a for a in self._ranked(episode, measured) if a in members)

    def _ranked(self, episode: int, measured: Sequence[FrozenTrial]) -> list[Architecture]:
        """The whole space, best predicted reward first."""
        key = (episode, len(measured))
        if self._ranking is None or self._ranking[0] != key:
            self._ranking = (key, self._rank(episode, measured))
        return self._ranking[1]

    def _rank(self, episode: int, measured: Sequence[FrozenTrial]) -> list[Architecture]:
        with torch.random.fork_rng(devices=[]), _one_thread():
            torch.manual_seed(self.random_for("predictor", episode).getrandbits(32))
            predictor = RewardPredictor(self.space)
            sequences = [
                [
                    *self._context(self.episode_of(trial.number), measured, predictor),
                    predictor.encode(architecture_of(trial)),
                ]
                for trial in measured
            ]
            rewards = torch.tensor([_value(trial) for trial in measured])
            # an architecture that misses a hard constraint is worth no more than the worst
            rewards[[not _feasible(trial) for trial in measured]] = rewards.min()
            # rewards of one search lie close together: their order is what matters
            rewards = (rewards - rewards.mean()) / rewards.std(correction=0).clamp_min(1e-6)
            predictor.fit(torch.tensor(sequences), rewards)
        context = self._context(episode, measured, predictor)
        everything = list(self.space)
        with torch.no_grad():
            predicted = predictor(torch.tensor([[*context, predictor.encode(a)] for a in everything]))
        return [everything[index] for index in predicted.argsort(descending=True, stable=True).tolist()]

    def _context(self, episode: int, measured: Sequence[FrozenTrial], predictor: RewardPredictor) -> list[list[int]]:
        """Best architecture of the previous episode, and best so far, as an episode starts."""
        before = [trial for trial in measured if self.episode_of(trial.number) < episode]
        before = [trial for trial in before if _feasible(trial)] or before
        previous = [trial for trial in before if self.episode_of(trial.number) == episode - 1]
        best = [architecture_of(max(trials, key=_value)) if trials else None for trials in (previous, before)]
        return [predictor.encode(architecture) for architecture in best]


@contextmanager
def _one_thread() -> Iterator[None]:
    """The predictor is tiny, and its choices must not depend on how many threads a process was given."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _feasible(trial: FrozenTrial) -> bool:
    return all(value <= 0 for value in trial.constraints.values())


def make_controller(
    name: str,
    space: SearchSpace,
    candidates_per_episode: int,
    seed: int = 0,
    epsilon: EpsilonSchedule | None = None,
) -> ArchitectureSampler:
    """Make a controller by name.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in CONTROLLERS:
        raise ValueError(f"controller={name!r} is unknown; choose from {', '.join(CONTROLLERS)}.")
    if name == "lstm":
        return LSTMSampler(space, candidates_per_episode, seed, epsilon)
    return OptunaSampler(name, space, candidates_per_episode, seed)
