"""Attention probabilities of student and teacher, against a slow and obvious reimplementation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnas_hf.distillation.losses import attention_map_loss


def scores(batch, heads, sequence, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, sequence, sequence, generator=generator, dtype=dtype)


def attend(scores, mask):
    """Probabilities as an encoder makes them: none for padded keys."""
    return scores.masked_fill(~mask.bool()[:, None, None], torch.finfo(scores.dtype).min).softmax(-1)


def slow_loss(students, teachers, mask, num_tokens):
    total = 0.0
    for student, teacher in zip(students, teachers, strict=True):
        if student.shape[1] != teacher.shape[1]:
            student, teacher = (maps.sum(1, keepdim=True) / maps.shape[1] for maps in (student, teacher))
        for text in range(len(mask)):
            real = [t for t in range(mask.shape[1]) if mask[text, t]]
            for head in range(student.shape[1]):
                for query in real:
                    for key in real:
                        p, q = float(student[text, head, query, key]), float(teacher[text, head, query, key])
                        total += q * math.log(q / p) / student.shape[1] / len(students)
    return total / num_tokens


@settings(deadline=None, max_examples=15)
@given(
    heads=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=2),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seed=st.integers(0, 100),
)
def test_loss_is_that_of_loops(heads, lengths, seed):
    mask = torch.tensor([[int(t < length) for t in range(max(lengths))] for length in lengths])
    batch, sequence = mask.shape
    students = [attend(scores(batch, s, sequence, seed + i), mask) for i, (s, _) in enumerate(heads)]
    teachers = [attend(scores(batch, t, sequence, seed + 500 + i), mask) for i, (_, t) in enumerate(heads)]
    loss = attention_map_loss(students, teachers, mask, 5)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(slow_loss(students, teachers, mask, 5), rel=1e-9, abs=1e-12)


def test_golden_values():
    student = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).expand(1, 2, 2, 2)
    teacher = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).expand(1, 2, 2, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert attention_map_loss([student], [teacher], torch.ones(1, 2), 2).item() == pytest.approx(expected / 2)
    # the heads of these teachers differ, but only their mean is compared with a lone head
    mixed = torch.tensor([[[0.9, 0.1], [1.0, 0.0]], [[0.6, 0.4], [0.0, 1.0]]])[None]
    assert attention_map_loss([student[:, :1]], [mixed], torch.ones(1, 2), 2).item() == pytest.approx(expected / 2)


@pytest.mark.parametrize("teacher_heads", [2, 3])
def test_gradient_is_that_of_numbers(teacher_heads):
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    teacher = attend(scores(3, teacher_heads, 3, seed=1), mask)
    student = scores(3, 2, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: attention_map_loss([attend(s, mask)], [teacher], mask, 5), student)


def test_equal_maps_leave_nothing_to_learn():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    raw = scores(2, 2, 3, seed=1, dtype=torch.float32).requires_grad_()
    loss = attention_map_loss([attend(raw, mask)], [attend(raw.detach(), mask)], mask, 5)
    loss.backward()
    assert loss.item() == 0
    assert raw.grad.abs().max() < 1e-6
    assert attention_map_loss([attend(raw, mask)], [attend(raw.detach().flip(1), mask)], mask, 5) > 0.01


@pytest.mark.parametrize("teacher_heads", [2, 3])
def test_what_padding_holds_changes_nothing(teacher_heads):
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    student = attend(scores(2, 2, 3, seed=1), mask).requires_grad_()
    teacher = attend(scores(2, teacher_heads, 3, seed=2), mask)
    wide_mask = torch.zeros(3, 5, dtype=torch.long)
    wide_mask[:2, :3] = mask
    counts = (wide_mask[:, None, :, None] * wide_mask[:, None, None, :]).bool()

    def padded(maps):
        wide = torch.zeros(3, maps.shape[1], 5, 5, dtype=maps.dtype)
        wide[:2, :, :3, :3] = maps
        return wide.masked_fill(~counts, torch.nan)

    wide_student = padded(student.detach()).requires_grad_()
    loss = attention_map_loss([student], [teacher], mask, 5)
    wide_loss = attention_map_loss([wide_student], [padded(teacher)], wide_mask, 5)
    torch.testing.assert_close(wide_loss, loss)
    loss.backward()
    wide_loss.backward()
    torch.testing.assert_close(wide_student.grad[:2, :, :3, :3], student.grad)
    assert (wide_student.grad[~counts.expand_as(wide_student)] == 0).all()


def test_parts_of_a_batch_add_up():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    student, teacher = attend(scores(4, 2, 3, seed=1), mask), attend(scores(4, 2, 3, seed=2), mask)
    whole = attention_map_loss([student], [teacher], mask, 9)
    parts = [
        attention_map_loss([student[rows]], [teacher[rows]], mask[rows], torch.tensor(9.0))
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_probabilities_that_underflowed_stay_finite():
    raw = torch.tensor([[0.0, 200.0], [200.0, 0.0]]).expand(1, 1, 2, 2).clone().requires_grad_()
    teacher = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).expand(1, 1, 2, 2)
    loss = attention_map_loss([raw.softmax(-1)], [teacher], torch.ones(1, 2), 2)
    loss.backward()
    assert 5 < loss.item() < 100
    assert raw.grad.isfinite().all()


def test_bf16_is_close_to_float32():
    mask = torch.ones(2, 6)
    student, teacher = (attend(scores(2, 3, 6, seed=seed, dtype=torch.float32), mask) for seed in (1, 2))
    low = attention_map_loss([student.bfloat16()], [teacher.bfloat16()], mask, 12)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, attention_map_loss([student], [teacher], mask, 12), rtol=0.02, atol=0)
