"""Attention-map loss: where a student's tokens attend, against where its teacher's do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..batch import DistillationBatch
from ..layer_mapping import LayerPair
from ..student_outputs import StudentOutputs
from ..teacher import Teacher
from ..teacher_outputs import Required
from .arguments import LossArguments
from .base import Loss, LossSetting, register_loss

# Probabilities below this count as this. Keeps the logarithm and its gradient finite where a softmax underflowed.
_LEAST_PROBABILITY = 1e-9


def attention_map_loss(
    student_maps: Sequence[torch.Tensor],
    teacher_maps: Sequence[torch.Tensor],
    attention_mask: torch.Tensor,
    num_tokens: torch.Tensor | float,
) -> torch.Tensor:
    """KL divergence of the student's attention probabilities from the teacher's.

    Heads are compared one by one where student and teacher have as many (MobileBERT, arXiv 2004.02984; MiniLM, arXiv
    2002.10957), else the mean over heads.

    Args:
        student_maps: For each pair of layers ``(batch, student heads, sequence, sequence)``, probabilities over the
            last dimension, before dropout.
        teacher_maps: For each pair of layers ``(batch, teacher heads, sequence, sequence)``.
        attention_mask: ``(batch, sequence)``, nonzero for real tokens.
        num_tokens: What to divide by: the tokens of the whole accumulated batch.

    Returns:
        A float32 scalar (float64 for float64 inputs), in nats: the sum over real tokens of the mean over pairs and
        heads, divided by ``num_tokens``.
    """
    real = attention_mask.bool()
    counts = real[:, None, :, None] & real[:, None, None, :]
    total = _wide(student_maps[0].new_zeros(()))
    for student_map, teacher_map in zip(student_maps, teacher_maps, strict=True):
        student, teacher = _wide(student_map), _wide(teacher_map)
        if student.shape[1] != teacher.shape[1]:
            student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
        # where a query or a key is padding, neither a value nor a gradient is left, whatever a model wrote there
        student, teacher = student.masked_fill(~counts, 1), teacher.masked_fill(~counts, 0)
        log_student = student.clamp_min(_LEAST_PROBABILITY).log()
        log_teacher = teacher.clamp_min(_LEAST_PROBABILITY).log()
        total = total + (teacher * (log_teacher - log_student)).sum() / student.shape[1]
    return total / (num_tokens * len(student_maps))


def _wide(probabilities: torch.Tensor) -> torch.Tensor:
    return probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))


@register_loss
class AttentionMapsLoss(Loss):
    """The student's attention probabilities against those of the mapped teacher layers."""

    name = "attention_maps"
    description = "KL divergence between attention probabilities of mapped layers"
    storable = False  # their size grows with the square of a text's length

    def __init__(self, setting: LossSetting) -> None:
        super().__init__(setting)
        self.pairs = list(setting.pairs)

    @classmethod
    def requires(cls, args: LossArguments, pairs: Sequence[LayerPair], teacher: Teacher) -> Required:
        return Required(attention_maps=frozenset(pair.teacher for pair in pairs))

    def forward(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        assert student.attention_maps is not None
        return attention_map_loss(
            [student.attention_maps[pair.student - 1] for pair in self.pairs],
            [batch.teacher.attention_maps[pair.teacher] for pair in self.pairs],
            batch.attention_mask,
            batch.num_tokens,
        )
