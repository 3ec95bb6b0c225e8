"""Relation loss: how a student's queries, keys and values relate to each other, against those of its teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...utils.attention import find_attention_projections
from ..batch import DistillationBatch
from ..layer_mapping import LayerPair
from ..student_outputs import StudentOutputs, encoder_of
from ..teacher import Teacher
from ..teacher_outputs import Required
from .arguments import LossArguments
from .base import Loss, LossSetting, register_loss


def common_relation_heads(student_size: int, teacher_size: int, wanted: int) -> int:
    """The largest number of relation heads, at most ``wanted``, that divides both sizes.

    Sizes are those of queries over all attention heads. MiniLMv2 wants 48 for teachers of 768 and 64 for those of 1024.

    Raises:
        ValueError: If ``wanted`` is not positive.
    """
    if wanted < 1:
        raise ValueError(f"relation_heads={wanted} must be at least 1.")
    common = math.gcd(student_size, teacher_size)
    return max(heads for heads in range(1, min(wanted, common) + 1) if common % heads == 0)


def relation_loss(
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    attention_mask: torch.Tensor,
    num_relation_heads: int,
    num_tokens: torch.Tensor | float,
) -> torch.Tensor:
    """KL divergence of the student's self-attention relations from the teacher's (MiniLMv2, arXiv 2012.15828).

    The relation of a head is ``softmax(Q Q^T / sqrt(size / num_relation_heads))``, a distribution over real keys for
    each token, whatever attention heads queries were made for; so for keys and for values. Student and teacher may
    differ in size. All is computed in float32, also under autocast: the scores of a token with itself are large.

    Args:
        student: Queries, keys and values, each ``(batch, sequence, student_size)``.
        teacher: The same, each ``(batch, sequence, teacher_size)``.
        attention_mask: ``(batch, sequence)``, nonzero for real tokens.
        num_relation_heads: Must divide both sizes.
        num_tokens: What to divide by: the tokens of the whole accumulated batch.

    Returns:
        A float32 scalar (float64 for float64 inputs), in nats: the sum over real tokens of the mean over relation heads
        and over the three relations, divided by ``num_tokens``.

    Raises:
        ValueError: If the number of relation heads does not divide a size.
    """
    real = attention_mask.bool()
    total = student[0].new_zeros((), dtype=torch.promote_types(student[0].dtype, torch.float32))
    with torch.autocast(real.device.type, enabled=False):
        for student_states, teacher_states in zip(student, teacher, strict=True):
            total = total + torch.nn.functional.kl_div(
                _log_relation(student_states, real, num_relation_heads, "student"),
                _log_relation(teacher_states, real, num_relation_heads, "teacher"),
                reduction="sum",
                log_target=True,
            )
        return total / (num_tokens * num_relation_heads * len(student))


def _log_relation(states: torch.Tensor, real: torch.Tensor, num_heads: int, whose: str) -> torch.Tensor:
    """Log-probabilities ``(batch, relation heads, sequence, sequence)`` over real keys."""
    batch, sequence, size = states.shape
    if size % num_heads:
        choices = ", ".join(str(heads) for heads in range(1, size + 1) if size % heads == 0)
        raise ValueError(
            f"relation_heads={num_heads} does not divide the {whose}'s size {size} of queries, keys and values; "
            f"choose a divisor of the student's and the teacher's size, here one of {choices}."
        )
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    # Nothing of padding, not even a NaN, may reach the scores or the gradients; and padding as zeros relates alike to
    # all, in student and teacher, and so adds nothing. Dividing both factors by the square root of the scale costs
    # less than dividing their product.
    states = states.masked_fill(~real[..., None], 0) * (size // num_heads) ** -0.25
    heads = states.view(batch, sequence, num_heads, -1).transpose(1, 2)
    scores = heads @ heads.transpose(-1, -2)
    # Finite, as a row without any real key is no distribution otherwise; half of the least, as the largest score is
    # yet to be subtracted.
    return scores.masked_fill(~real[:, None, None], torch.finfo(scores.dtype).min / 2).log_softmax(-1)


@register_loss
class RelationsLoss(Loss):
    """Relations among queries, keys and values of the student's last layer, against those of a teacher layer."""

    name = "relations"
    description = "KL divergence between relations among queries, among keys and among values (MiniLMv2)"

    def __init__(self, setting: LossSetting) -> None:
        super().__init__(setting)
        (self.teacher_layer,) = self.required.queries_keys_values
        dimensions = setting.teacher.dimensions
        wanted = setting.args.relation_heads or dimensions.num_attention_heads
        self.relation_heads = common_relation_heads(setting.student.config.hidden_size, dimensions.hidden_size, wanted)

    @classmethod
    def requires(cls, args: LossArguments, pairs: Sequence[LayerPair], teacher: Teacher) -> Required:
        deepest = teacher.dimensions.num_layers
        if args.relation_teacher_layer > deepest:
            raise ValueError(
                f"relation_teacher_layer={args.relation_teacher_layer}: the teacher has layers 1 to {deepest}."
            )
        find_attention_projections(teacher.model, teacher.dimensions.num_layers)  # raises where there are none
        return Required(queries_keys_values=frozenset({args.relation_teacher_layer or deepest}))

    def forward(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        attention = encoder_of(student.model).encoder.layer[-1].attention.self  # type: ignore[union-attr]
        # made once more from the layer's input rather than caught on the way: that would miss the gradient where
        # activations are recomputed, and these three maps of one layer cost little
        states = student.hidden_states[-2]
        return relation_loss(
            [attention.query(states), attention.key(states), attention.value(states)],  # type: ignore[operator, union-attr]
            batch.teacher.queries_keys_values[self.teacher_layer],
            batch.attention_mask,
            self.relation_heads,
            batch.num_tokens,
        )
