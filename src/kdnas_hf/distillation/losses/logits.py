"""Logits: the student's distribution over the vocabulary at masked tokens, against the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...utils.decoders import DecoderInputs
from ..batch import DistillationBatch
from ..layer_mapping import LayerPair
from ..student_outputs import StudentOutputs
from ..teacher import Teacher
from ..teacher_outputs import Required
from ..token_logits import log_probabilities, sum_over_positions
from .arguments import LossArguments
from .base import Loss, LossSetting, register_loss


def logit_loss(
    student: DecoderInputs, teacher: DecoderInputs, temperature: float, num_tokens: torch.Tensor | float
) -> torch.Tensor:
    """KL divergence of the student's softened predictions from the teacher's, times T² (Hinton et al., 1503.02531).

    Both logits are divided by T, ``temperature``; the sum by ``num_tokens``, the predicted positions of the whole
    accumulated batch.

    Returns:
        A float32 scalar (float64 for float64 inputs), in nats.

    Raises:
        ValueError: If the vocabularies differ.
    """
    if len(student.weight) != len(teacher.weight):
        raise ValueError(
            f"the student predicts vocab_size={len(student.weight)} tokens, its teacher {len(teacher.weight)}; logits "
            "can only be learned from a teacher of the same vocabulary."
        )

    def divergence(student: DecoderInputs, teacher: DecoderInputs, rows: slice) -> torch.Tensor:
        return torch.nn.functional.kl_div(
            log_probabilities(student, rows, temperature),
            log_probabilities(teacher, rows, temperature),
            reduction="sum",
            log_target=True,
        )

    return sum_over_positions(divergence, student, teacher) * temperature**2 / num_tokens


@register_loss
class LogitsLoss(Loss):
    """The student's distribution over the vocabulary at masked tokens against the teacher's, softened."""

    name = "logits"
    description = "KL divergence between softened predictions of masked tokens"
    student_head = "masked_lm"
    teacher_head = "masked_lm"
    masks_tokens = True
    storable = False  # other tokens are masked in each pass

    def __init__(self, setting: LossSetting) -> None:
        super().__init__(setting)
        self.temperature = setting.args.temperature

    @classmethod
    def requires(cls, args: LossArguments, pairs: Sequence[LayerPair], teacher: Teacher) -> Required:
        if teacher.masked_lm is None:
            raise ValueError(
                "losses: 'logits' needs a teacher with its masked language modeling head; load it with "
                "load_teacher(…, head='masked_lm'), or leave the loss out."
            )
        return Required(token_logits=True)

    def forward(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        assert batch.teacher.decoder is not None
        assert batch.num_labels is not None
        return logit_loss(student.decoder, batch.teacher.decoder, self.temperature, batch.num_labels)
