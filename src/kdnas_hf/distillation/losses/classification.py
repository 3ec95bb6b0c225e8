"""What the losses on a task's classes have in common."""

from __future__ import annotations

import torch

from ..batch import DistillationBatch
from ..student_outputs import StudentOutputs
from .base import Loss, Measure


class ClassificationLoss(Loss):
    """A loss on a task's classes."""

    student_head = "task"
    uses_labels = True

    def measure(self) -> Measure:
        return Accuracy(self)


class Accuracy(Measure):
    """The value of a loss on a task's classes, and the share of right answers."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss)
        self.sums = torch.zeros(3, dtype=torch.float64)

    def add(self, student: StudentOutputs, batch: DistillationBatch) -> None:
        assert batch.labels is not None
        right = (student.task_logits.argmax(-1) == batch.labels.flatten()[batch.labeled]).sum()
        values = [self.loss(student, batch), torch.tensor(batch.labeled.numel()), right]
        self.sums += torch.stack([value.detach().double().cpu() for value in values])

    def metrics(self) -> dict[str, float]:
        """See `Measure`; ``accuracy`` as well."""
        return super().metrics() | {"accuracy": float(self.sums[2] / self.sums[1])}
