"""The published controller: an LSTM that predicts rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
import torch
from torch import nn

from ...utils.random_state import drawing
from ..architecture import Architecture, field_of
from ..space import SearchSpace
from .base import ArchitectureSampler, Observation, leaders_of, worst


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
        # index 0 stands for "none": before the first episode has ended, and of a layer that is absent
        sizes = [len(values) + 1 for values in space.choices.values()]
        self.embeddings = nn.ModuleList(nn.Embedding(size, embedding_size) for size in sizes)
        self.lstm = nn.LSTM(embedding_size * len(sizes), hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def encode(self, architecture: Architecture | None) -> list[int]:
        """Indices of an architecture's choices, zeros for None."""
        if architecture is None:
            return [0] * len(self.embeddings)
        depth, params = architecture.num_hidden_layers, self.space.encode(architecture)
        return [
            values.index(params[name]) + 1 if (field_of(name)[1] or 0) <= depth else 0
            for name, values in self.space.choices.items()
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
    then random with probability epsilon, and else the best predicted architecture that is not taken. What failed, or
    misses a hard constraint, is worth no more than the worst.

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

    def choose(self, study: optuna.Study, number: int, available: Sequence[Architecture]) -> Architecture:
        """Choose at random with probability epsilon, else the best predicted."""
        episode, observed, _ = self.known(study, number)
        known = [one for one in observed if one.share == 1]  # what was stopped promised less than it would have kept
        if not known or self.random_for("epsilon", number).random() < self.epsilon(episode):
            return super().choose(study, number, available)
        if not self.space.is_enumerable:
            available = self.available(study, number, leaders_of(known))
        if self._fitted is None or self._fitted[0] != (episode, len(known)):
            self._fitted = ((episode, len(known)), self._fit(episode, known))
        predictor = self._fitted[1]
        context = [predictor.encode(one) for one in _context(episode, known)]
        with torch.no_grad(), _one_thread():
            predicted = predictor(torch.tensor([[*context, predictor.encode(one)] for one in available]))
        return available[int(predicted.argmax())]

    def _fit(self, episode: int, known: Sequence[Observation]) -> RewardPredictor:
        """Fitted once an episode, on what the episodes before it showed."""
        with drawing(self.random_for("predictor", episode).getrandbits(32)), _one_thread():
            predictor = RewardPredictor(self.space)
            sequences = [[*_context(one.episode, known), one.architecture] for one in known]
            (floor,) = worst(known, [1])
            rewards = torch.tensor([one.values[0] if one.is_feasible and one.values else floor for one in known])
            # rewards of one search lie close together: their order is what matters
            rewards = (rewards - rewards.mean()) / rewards.std(correction=0).clamp_min(1e-6)
            encoded = [[predictor.encode(one) for one in sequence] for sequence in sequences]
            predictor.fit(torch.tensor(encoded), rewards)
        return predictor


def _context(episode: int, known: Sequence[Observation]) -> list[Architecture | None]:
    """Best architecture of the previous episode, and best so far, as an episode starts."""
    before = [one for one in known if one.episode < episode]
    return [
        next(iter(leaders_of(some)), None) for some in ([one for one in before if one.episode == episode - 1], before)
    ]


@contextmanager
def _one_thread() -> Iterator[None]:
    """The predictor is tiny, and its choices must not depend on how many threads a process was given."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
