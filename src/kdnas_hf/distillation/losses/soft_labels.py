"""Soft labels: the student's distribution over a task's classes, against the fine-tuned teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..batch import DistillationBatch
from ..layer_mapping import LayerPair
from ..student_outputs import StudentOutputs
from ..teacher import Teacher
from ..teacher_outputs import Required
from .arguments import LossArguments
from .base import LossSetting, register_loss
from .classification import ClassificationLoss


def soft_label_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float, num_labels: torch.Tensor
) -> torch.Tensor:
    """KL(teacher || student) of distributions over classes, softened, times T² (Hinton et al., arXiv 1503.02531).

    Logits are ``(labeled, classes)``; the sum is divided by ``num_labels``.
    """
    student = nn.functional.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = nn.functional.log_softmax(teacher_logits.float() / temperature, dim=-1)
    divergence = nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)
    return divergence * temperature**2 / num_labels


@register_loss
class SoftLabelsLoss(ClassificationLoss):
    """The student's distribution over a task's classes against the teacher's, softened, of all that is labeled."""

    name = "soft_labels"
    description = "KL divergence between softened predictions of a task's classes"
    teacher_head = "task"

    def __init__(self, setting: LossSetting) -> None:
        super().__init__(setting)
        self.temperature = setting.args.temperature

    @classmethod
    def requires(cls, args: LossArguments, pairs: Sequence[LayerPair], teacher: Teacher) -> Required:
        if teacher.task_model is None:
            raise ValueError(
                "losses: 'soft_labels' needs a teacher that was fine-tuned on the task; load it with load_teacher(…, "
                "head='sequence_classification' or 'token_classification')."
            )
        return Required(task_logits=True)

    def forward(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        assert batch.teacher.task_logits is not None
        assert batch.num_labels is not None
        teacher = batch.teacher.task_logits.flatten(0, -2).index_select(0, batch.labeled)
        return soft_label_loss(student.task_logits, teacher, self.temperature, batch.num_labels)
