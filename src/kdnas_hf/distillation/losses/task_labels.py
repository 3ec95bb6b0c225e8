"""A task's classes: the teacher's softened distribution over them (Hinton et al. 2015), and the labels themselves."""

from __future__ import annotations

import torch
from torch import nn


def soft_label_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float, num_labels: torch.Tensor
) -> torch.Tensor:
    """KL(teacher || student) of distributions over classes, softened by ``temperature`` and scaled by its square.

    Args:
        student_logits: ``(labelled, classes)``.
        teacher_logits: ``(labelled, classes)``.
        temperature: Divides both.
        num_labels: Scalar that the sum is divided by.

    Returns:
        A float32 scalar.
    """
    student = nn.functional.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = nn.functional.log_softmax(teacher_logits.float() / temperature, dim=-1)
    divergence = nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)
    return divergence * temperature**2 / num_labels


def label_loss(student_logits: torch.Tensor, labels: torch.Tensor, num_labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the labels.

    Args:
        student_logits: ``(labelled, classes)``.
        labels: ``(labelled,)``.
        num_labels: Scalar that the sum is divided by.

    Returns:
        A float32 scalar.
    """
    return nn.functional.cross_entropy(student_logits.float(), labels, reduction="sum") / num_labels
