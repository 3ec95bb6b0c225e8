"""Cosine: the angles between a student's projected layers and the teacher layers that they learn from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..batch import DistillationBatch
from ..student_outputs import StudentOutputs
from .base import register_loss
from .hidden_states import ProjectedStatesLoss


def cosine_loss(
    predictions: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], num_tokens: torch.Tensor | float
) -> torch.Tensor:
    """Mean of 1 - cosine over tokens and pairs of layers (DistilBERT, arXiv 1910.01108).

    Args:
        predictions: For each pair of layers ``(tokens, teacher_hidden_size)``, real (unpadded) tokens only.
        targets: The same for the teacher.
        num_tokens: What to divide by: the tokens of the whole accumulated batch.

    Returns:
        A float32 scalar (float64 for float64 predictions) between 0 and 2; a vector of zeros is at 1 from all others.
    """
    wide = torch.promote_types(predictions[0].dtype, torch.float32)
    total = predictions[0].new_zeros((), dtype=wide)
    for prediction, target in zip(predictions, targets, strict=True):
        # an eps that is not tiny, as the gradient at zero is a unit vector over eps
        cosine = torch.nn.functional.cosine_similarity(prediction.to(wide), target.to(wide), dim=-1, eps=1e-4)
        total = total + (1 - cosine).sum()
    return total / (num_tokens * len(targets))


@register_loss
class CosineLoss(ProjectedStatesLoss):
    """One minus the cosine of projected states."""

    name = "cosine"
    description = "1 - cosine between projected student layers and teacher layers"

    def forward(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        return cosine_loss(self.predictions(student), self.targets(batch), batch.num_tokens)
