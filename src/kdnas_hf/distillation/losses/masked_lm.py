"""Masked language modeling: what a student learns without a teacher."""

from __future__ import annotations

import torch

from ...utils.decoders import DecoderInputs
from ..batch import DistillationBatch
from ..student_outputs import StudentOutputs
from ..token_logits import log_probabilities, sum_over_positions
from .base import Loss, register_loss


def masked_lm_loss(decoder: DecoderInputs, labels: torch.Tensor, num_tokens: torch.Tensor | float) -> torch.Tensor:
    """Cross-entropy of predicted tokens (BERT, arXiv 1810.04805).

    The sum over positions, whose right tokens are ``labels`` ``(positions,)``, without those of -100, is divided by
    ``num_tokens``, the predicted positions of the whole accumulated batch.

    Returns:
        A float32 scalar (float64 for float64 inputs), in nats.
    """

    def cross_entropy(decoder: DecoderInputs, rows: slice) -> torch.Tensor:
        return torch.nn.functional.nll_loss(log_probabilities(decoder, rows), labels[rows], reduction="sum")

    return sum_over_positions(cross_entropy, decoder) / num_tokens


@register_loss
class MaskedLMLoss(Loss):
    """Cross-entropy of masked tokens."""

    name = "masked_lm"
    description = "cross-entropy of masked tokens, without the teacher"
    student_head = "masked_lm"
    masks_tokens = True
    storable = False  # other tokens are masked in each pass

    def forward(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        assert batch.labels is not None
        assert batch.num_labels is not None
        return masked_lm_loss(student.decoder, batch.labels.flatten()[batch.labeled], batch.num_labels)
