"""One batch of text with everything that the teacher says about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch

from ..data.labels import IGNORED_LABEL
from .teacher_outputs import TeacherOutputs


@dataclass
class DistillationBatch:
    """What students read, and what they learn from it.

    What all students of a pool need of it is computed once, at the first access.

    Attributes:
        input_ids: ``(batch, sequence)``.
        attention_mask: ``(batch, sequence)``, 1 for real (unpadded) tokens.
        num_tokens: Scalar that sums over tokens are divided by: the real tokens of the whole accumulated batch.
        teacher: The teacher's outputs, standardized if asked for.
        labels: ``(batch, sequence)``, masked tokens or classes of tokens, or ``(batch,)``, classes of texts; -100 where
            there is none. None where no loss needs any.
        num_labels: Scalar that sums over labels are divided by.
        num_texts: Scalar that sums over texts are divided by.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    num_tokens: torch.Tensor
    teacher: TeacherOutputs = field(default_factory=TeacherOutputs)
    labels: torch.Tensor | None = None
    num_labels: torch.Tensor | None = None
    num_texts: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self._states: dict[int, torch.Tensor] = {}
        self._sums: dict[int, torch.Tensor] = {}

    @cached_property
    def real_tokens(self) -> torch.Tensor:
        """Positions ``(tokens,)`` of the real tokens in the flattened batch."""
        return self.attention_mask.flatten().nonzero().squeeze(1)

    @cached_property
    def labeled(self) -> torch.Tensor:
        """Positions ``(labels,)`` of what has a label: tokens of the flattened batch, or texts."""
        assert self.labels is not None
        return (self.labels.flatten() != IGNORED_LABEL).nonzero().squeeze(1)

    def real(self, states: torch.Tensor) -> torch.Tensor:
        """Real tokens ``(tokens, size)`` of ``(batch, sequence, size)``."""
        return states.flatten(0, 1).index_select(0, self.real_tokens)

    def teacher_states(self, layer: int) -> torch.Tensor:
        """The teacher's states of a layer at the real tokens, ``(tokens, hidden_size)``."""
        if layer not in self._states:
            self._states[layer] = self.real(self.teacher.hidden_states[layer])
        return self._states[layer]

    def teacher_sums(self, layer: int) -> torch.Tensor:
        """Sums over the real tokens ``(2, hidden_size)``: the teacher's states of a layer, and their squares."""
        if layer not in self._sums:
            exact = exactly(self.teacher_states(layer))
            self._sums[layer] = torch.stack([exact.sum(0), exact.square().sum(0)])
        return self._sums[layer]


def exactly(values: torch.Tensor) -> torch.Tensor:
    """The values in float64, for sums over many tokens; moved to the CPU from devices that have no float64."""
    return (values.cpu() if values.device.type == "mps" else values).double()
