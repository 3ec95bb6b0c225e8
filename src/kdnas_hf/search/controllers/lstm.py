"""The published controller: an LSTM that predicts rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
import torch
from optuna.trial import FrozenTrial
from torch import nn

from ...utils.random_state import drawing
from ..space import Architecture, SearchSpace
from .base import ArchitectureSampler, architecture_of, is_feasible, value_of


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


class RewardPredictor(nn.Module):
    """LSTM that reads three architectures and regresses a reward (KD-NAS, arXiv 2303.09639).

    It reads the sequence [best architecture of the previous episode, best so far, this architecture], each as the
    embeddings of its choices, concatenated. Choices for layers that an architecture does not have are padding.

    Args:
        space: The search space.
        embedding_size: Dimensions of a choice's embedding.
        hidden_size: Dimensions of the LSTM's state.
    """

    def __init__(self, space: SearchSpace, embedding_size: int = 16, hidden_size: int = 64) -> None:
        super().__init__()
        self.space = space
        self.choices = space.open_choices
        # index 0 stands for "none": before the first episode has ended, and of a layer that is absent
        self.embeddings = nn.ModuleList(nn.Embedding(len(one.values) + 1, embedding_size) for one in self.choices)
        self.lstm = nn.LSTM(embedding_size * len(self.choices), hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def encode(self, architecture: Architecture | None) -> list[int]:
        """Indices of an architecture's choices, zeros for None."""
        if architecture is None:
            return [0] * len(self.choices)
        params = self.space.encode(architecture)
        return [
            0 if choice.is_absent(architecture) else choice.values.index(params[choice.name]) + 1
            for choice in self.choices
        ]

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
        self._fitted: tuple[tuple[int, int], RewardPredictor] | None = None
        self._ranking: tuple[tuple[int, int], list[Architecture]] | None = None

    def choose(self, study: optuna.Study, trial: FrozenTrial, available: Sequence[Architecture]) -> Architecture:
        """Choose at random with probability epsilon, else the best predicted."""
        episode = self.episode_of(trial.number)
        measured = self.measured_before(study, episode)
        if not measured or self.random_for("epsilon", trial.number).random() < self.epsilon(episode):
            return super().choose(study, trial, available)
        if not self.space.is_enumerable:
            return self._rank(episode, measured, available)[0]
        key = (episode, len(measured))
        if self._ranking is None or self._ranking[0] != key:
            self._ranking = (key, self._rank(episode, measured, self.space.architectures))
        members = set(available)
        return next(architecture for architecture in self._ranking[1] if architecture in members)

    def _rank(
        self, episode: int, measured: Sequence[FrozenTrial], architectures: Sequence[Architecture]
    ) -> list[Architecture]:
        """The architectures, best predicted reward first."""
        predictor = self._predictor(episode, measured)
        context = self._context(episode, measured, predictor)
        with torch.no_grad(), _one_thread():
            predicted = predictor(torch.tensor([[*context, predictor.encode(a)] for a in architectures]))
        return [architectures[index] for index in predicted.argsort(descending=True, stable=True).tolist()]

    def _predictor(self, episode: int, measured: Sequence[FrozenTrial]) -> RewardPredictor:
        """Fitted once an episode, on what the episodes before it measured."""
        key = (episode, len(measured))
        if self._fitted is None or self._fitted[0] != key:
            self._fitted = (key, self._fit(episode, measured))
        return self._fitted[1]

    def _fit(self, episode: int, measured: Sequence[FrozenTrial]) -> RewardPredictor:
        with drawing(self.random_for("predictor", episode).getrandbits(32)), _one_thread():
            predictor = RewardPredictor(self.space)
            sequences = [
                [
                    *self._context(self.episode_of(trial.number), measured, predictor),
                    predictor.encode(architecture_of(trial)),
                ]
                for trial in measured
            ]
            rewards = torch.tensor([value_of(trial) for trial in measured])
            # an architecture that misses a hard constraint is worth no more than the worst
            rewards[[not is_feasible(trial) for trial in measured]] = rewards.min()
            # rewards of one search lie close together: their order is what matters
            rewards = (rewards - rewards.mean()) / rewards.std(correction=0).clamp_min(1e-6)
            predictor.fit(torch.tensor(sequences), rewards)
        return predictor

    def _context(self, episode: int, measured: Sequence[FrozenTrial], predictor: RewardPredictor) -> list[list[int]]:
        """Best architecture of the previous episode, and best so far, as an episode starts."""
        before = [trial for trial in measured if self.episode_of(trial.number) < episode]
        before = [trial for trial in before if is_feasible(trial)] or before
        previous = [trial for trial in before if self.episode_of(trial.number) == episode - 1]
        best = [architecture_of(max(trials, key=value_of)) if trials else None for trials in (previous, before)]
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
