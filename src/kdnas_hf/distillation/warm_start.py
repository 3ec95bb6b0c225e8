"""Start students where least squares takes them, before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers.utils import logging

from ..students import collect_layer_samples, copy_layers, read_teacher_layers, residual_basis
from .batch import DistillationBatch
from .objectives import PooledStudent
from .pool import StudentPool
from .teacher import Teacher

logger = logging.get_logger(__name__)

# in units of the mean square of a student's states
_RIDGE_PENALTY = 0.01
# layers are fitted to so many tokens at most: 12 * H_T bytes of memory for each token and layer
_MAX_TOKENS = 16384


def copy_teacher_layers(
    pool: StudentPool, teacher: Teacher, batches: Sequence[Mapping[str, torch.Tensor]], standardize: bool
) -> None:
    """Start every layer of every student that was made for this pool from the last teacher layer it is mapped to.

    Args:
        pool: The students.
        teacher: The teacher, whole.
        batches: ``input_ids`` and ``attention_mask`` of a sample of the training text.
        standardize: Whether students learn standardised states.

    Raises:
        ValueError: If the teacher's layers are of a kind that cannot be copied.
    """
    members = {
        name: member for name, member in pool.items() if member.owns_model and member.pairs and not member.started
    }
    layers = {name: {pair.student: pair.teacher for pair in member.pairs} for name, member in members.items()}
    if not members:
        return
    teacher_layers = read_teacher_layers(teacher.model)
    # batches are in order of length, and not all of them may be read
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist()
    sample = collect_layer_samples(
        teacher.model,
        [batches[i] for i in order],
        {layer for each in layers.values() for layer in each.values()},
        _MAX_TOKENS,
    )
    for name, member in members.items():
        config = member.student.config
        basis = residual_basis(teacher.embeddings, config.hidden_size, teacher.dimensions.hidden_size)
        if basis is None:
            raise ValueError(
                "student_init='teacher' needs a teacher whose word embeddings have its hidden size; choose "
                "'embeddings'."
            )
        copy_layers(member.student, layers[name], teacher_layers, basis, sample, standardize)


@dataclass
class _LeastSquares:
    """Sums for a linear regression with a constant.

    Attributes:
        inputs: ``(in + 1, in + 1)`` float64, products of inputs with inputs, the constant last.
        cross: ``(in + 1, out)`` float64, products of inputs with targets.
    """

    inputs: torch.Tensor
    cross: torch.Tensor

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Count ``(tokens, in)`` and ``(tokens, out)``."""
        inputs = torch.cat([inputs.float(), inputs.new_ones((len(inputs), 1), dtype=torch.float32)], dim=1)
        # products rounded to bf16 are no longer positive definite
        with torch.autocast(inputs.device.type, enabled=False):
            self.inputs += (inputs.T @ inputs).double().cpu()
            self.cross += (inputs.T @ targets.float()).double().cpu()

    def solve(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight ``(out, in)`` and bias ``(out,)``, float32."""
        penalty = torch.eye(len(self.inputs), dtype=torch.float64)
        penalty[-1, -1] = 0  # the constant is not shrunk
        penalty *= _RIDGE_PENALTY * self.inputs.diagonal()[:-1].mean()
        solution = torch.linalg.solve(self.inputs + penalty, self.cross).float()
        return solution[:-1].T, solution[-1]


@torch.no_grad()
def fit_projections(pool: StudentPool, batches: Iterable[DistillationBatch]) -> None:
    """Set the projections of students that have not started yet to their ridge regression on a sample, in place.

    A student that has learnt nothing predicts what can be read linearly from its states; without this, the first steps
    are spent on what least squares knows. A projection that all layers share keeps its start: no layer is fitted alone.

    Args:
        pool: The students, on the device where they train.
        batches: A sample of the training text, with targets.
    """
    members = {
        name: member
        for name, member in pool.items()
        if member.projections is not None and not member.projections.shared and not member.started
    }
    if not members:
        return
    sums: dict[tuple[str, int], _LeastSquares] = {}
    was_training = pool.training
    pool.eval()
    for batch in batches:
        for name, member in members.items():
            _add_batch(sums, name, member, batch)
    pool.train(was_training)
    for (name, layer), regression in sums.items():
        projections = members[name].projections
        assert projections is not None
        linear = projections.maps[str(layer)]
        weight, bias = regression.solve()
        linear.weight.copy_(weight)  # type: ignore[operator, union-attr]
        linear.bias.copy_(bias)  # type: ignore[operator, union-attr]


def _add_batch(
    sums: dict[tuple[str, int], _LeastSquares], name: str, member: PooledStudent, batch: DistillationBatch
) -> None:
    projections = member.projections
    assert projections is not None
    hidden_states = member(batch).hidden_states
    for layer, teachers in projections.teacher_layers.items():
        states = hidden_states[layer].flatten(0, 1).index_select(0, batch.real_tokens)
        targets = torch.cat([batch.targets[teacher] for teacher in teachers], dim=1)
        if (name, layer) not in sums:
            size = states.shape[1] + 1
            sums[name, layer] = _LeastSquares(
                torch.zeros(size, size, dtype=torch.float64),
                torch.zeros(size, targets.shape[1], dtype=torch.float64),
            )
        sums[name, layer].add(states, targets)
