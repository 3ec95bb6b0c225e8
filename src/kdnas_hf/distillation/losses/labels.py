"""Labels: cross-entropy of a task's labels, without the teacher."""

from __future__ import annotations

import torch
from torch import nn

from ..batch import DistillationBatch
from ..student_outputs import StudentOutputs
from .base import register_loss
from .classification import ClassificationLoss


def label_loss(student_logits: torch.Tensor, labels: torch.Tensor, num_labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the labels.

    Logits are ``(labeled, classes)``; the sum is divided by ``num_labels``.
    """
    return nn.functional.cross_entropy(student_logits.float(), labels, reduction="sum") / num_labels


@register_loss
class LabelsLoss(ClassificationLoss):
    """A task's labels themselves."""

    name = "labels"
    description = "cross-entropy of a task's labels, without the teacher"

    def forward(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        assert batch.labels is not None
        assert batch.num_labels is not None
        return label_loss(student.task_logits, batch.labels.flatten()[batch.labeled], batch.num_labels)
