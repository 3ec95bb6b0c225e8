"""The published controller: an LSTM that predicts rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import optuna
import torch
from torch import nn

from ...students.architecture import Architecture, field_of
from ...utils.hardware import torch_threads
from ...utils.random_state import drawing
from ..space import SearchSpace
from .base import ArchitectureSampler, Observation, ranked


@dataclass(frozen=True)
class EpsilonSchedule:
    """Probability of a random candidate: ``start`` in the first episode, less by ``decay`` in each that follows."""

    start: float = 1.0
    decay: float = 0.05

    def __post_init__(self) -> None:
        for name, value in (("epsilon_start", self.start), ("epsilon_decay", self.decay)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must be between 0 and 1.")

    def __call__(self, episode: int) -> float:
        """The probability in an episode, counted from 0."""
        return max(0.0, self.start - self.decay * episode)


class RewardPredictor(nn.Module):
    """LSTM that reads three architectures and regresses a reward (KD-NAS, arXiv 2303.09639).

    It reads the sequence [best architecture of the previous episode, best so far, this architecture], each as the
    embeddings of its choices, concatenated. Choices for layers that an architecture does not have are padding.
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
        params, depth = self.space.encode(architecture), architecture.num_hidden_layers
        choices = self.space.choices.items()
        return [values.index(params[n]) + 1 if (field_of(n)[1] or 0) <= depth else 0 for n, values in choices]

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        """Predict rewards, ``(batch,)``, from indices, ``(batch, 3, choices)``."""
        embedded = torch.cat([embed(sequences[..., i]) for i, embed in enumerate(self.embeddings)], dim=-1)
        states, _ = self.lstm(embedded)
        return self.head(states[:, -1]).squeeze(-1)

    def fit(self, sequences: torch.Tensor, rewards: torch.Tensor, steps: int = 200) -> None:
        """Regress rewards by mean squared error with RMSprop, all at once."""
        optimizer = torch.optim.RMSprop(self.parameters(), lr=3e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(self(sequences), rewards).backward()
            optimizer.step()


class LSTMSampler(ArchitectureSampler):
    """The published controller: an LSTM that predicts rewards, epsilon-greedy (KD-NAS, arXiv 2303.09639).

    At the start of an episode the predictor is trained on what the episodes before showed. A candidate is then random
    with probability epsilon, and else the best predicted architecture that is not taken. What failed, was stopped early
    or misses a hard constraint is worth what the worst of the others is.
    """

    def __init__(
        self, space: SearchSpace, candidates_per_episode: int, seed: int = 0, epsilon: EpsilonSchedule | None = None
    ) -> None:
        super().__init__(space, candidates_per_episode, seed)
        self.epsilon = epsilon or EpsilonSchedule()
        self._fitted: tuple[tuple[int, int], RewardPredictor] | None = None

    def choose(self, study: optuna.Study, number: int, available: Sequence[Architecture]) -> Architecture:
        """Choose at random with probability epsilon, else the best predicted."""
        episode, known, _ = self.known(study, number)
        if not known or self.random_for("epsilon", number).random() < self.epsilon(episode):
            return super().choose(study, number, available)
        if not self.space.is_enumerable:
            available = self.available(study, number, known)
        if self._fitted is None or self._fitted[0] != (episode, len(known)):
            self._fitted = ((episode, len(known)), self._fit(episode, known))
        predictor, context = self._fitted[1], _context(episode, known)
        with torch.no_grad(), torch_threads(1):  # choices must not depend on how many threads a process was given
            sequences = [[predictor.encode(one) for one in (*context, candidate)] for candidate in available]
            return available[int(predictor(torch.tensor(sequences)).argmax())]

    def _fit(self, episode: int, known: Sequence[Observation]) -> RewardPredictor:
        with drawing(self.random_for("predictor", episode).getrandbits(32)), torch_threads(1):
            predictor = RewardPredictor(self.space)
            contexts = [[*_context(one.episode, known), one.architecture] for one in known]
            floor = min((one.values[0] for one in known if one.is_feasible), default=0.0)
            rewards = torch.tensor([one.values[0] if one.is_feasible else floor for one in known])
            # rewards of one search lie close together: their order is what matters
            rewards = (rewards - rewards.mean()) / rewards.std(correction=0).clamp_min(1e-6)
            predictor.fit(torch.tensor([[predictor.encode(one) for one in sequence] for sequence in contexts]), rewards)
        return predictor


def _context(episode: int, known: Sequence[Observation]) -> list[Architecture | None]:
    """Best architecture of the previous episode, and best so far, as an episode starts."""
    before = ranked(one for one in known if one.episode < episode)
    previous = [one.architecture for one in before if one.episode == episode - 1]
    return [next(iter(previous), None), next((one.architecture for one in before), None)]
