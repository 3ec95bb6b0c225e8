"""Losses on projected states, for a student and a teacher of which nothing but sizes and states is given."""

from types import SimpleNamespace

import torch

from kdnas_hf.distillation import LossSetting
from kdnas_hf.distillation.batch import DistillationBatch
from kdnas_hf.distillation.layer_mapping import LayerPair
from kdnas_hf.distillation.losses import LossArguments
from kdnas_hf.distillation.student_outputs import StudentOutputs
from kdnas_hf.distillation.teacher_outputs import TeacherOutputs

STUDENT_SIZE, TEACHER_SIZE = 3, 5
PAIRS = (LayerPair(1, 2), LayerPair(2, 3), LayerPair(2, 4))


def make_loss(loss_class, pairs=PAIRS, basis=None, student_size=STUDENT_SIZE, **arguments):
    setting = LossSetting(
        args=LossArguments(**arguments),
        student=SimpleNamespace(config=SimpleNamespace(hidden_size=student_size, num_hidden_layers=2)),
        teacher=SimpleNamespace(dimensions=SimpleNamespace(hidden_size=TEACHER_SIZE, num_layers=4)),
        pairs=pairs,
        basis=basis,
    )
    return loss_class(setting)


def make_states(lengths, seed, scale=1.0, student_size=STUDENT_SIZE):
    """What student and teacher say about a batch of texts; what they say of padding is not a number."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[int(token < length) for token in range(max(lengths))] for length in lengths])

    def states(size):
        values = torch.randn(*mask.shape, size, generator=generator) * scale
        return values.masked_fill(mask[..., None] == 0, torch.nan)

    teacher = TeacherOutputs({layer: states(TEACHER_SIZE) + layer for layer in (2, 3, 4)})
    batch = DistillationBatch(torch.zeros_like(mask), mask, torch.ones(()), teacher)
    return StudentOutputs(None, batch, tuple(states(student_size) for _ in range(3))), batch
