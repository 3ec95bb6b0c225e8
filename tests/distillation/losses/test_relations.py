"""Relations among queries, keys and values, against a slow and obvious reimplementation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnas_hf.distillation.losses import common_relation_heads, relation_loss


def relation(states, head, size, query, keys):
    """Distribution over keys of one query in one relation head, in numbers."""
    part = slice(head * size, (head + 1) * size)
    scores = [float(states[query, part] @ states[key, part]) / math.sqrt(size) for key in keys]
    total = sum(math.exp(score - max(scores)) for score in scores)
    return [math.exp(score - max(scores)) / total for score in scores]


def slow_relation_loss(student, teacher, mask, heads, num_tokens):
    total = 0.0
    for student_states, teacher_states in zip(student, teacher, strict=True):
        for text in range(len(mask)):
            keys = [t for t in range(mask.shape[1]) if mask[text, t]]
            for query in keys:
                for head in range(heads):
                    s = relation(student_states[text], head, student_states.shape[-1] // heads, query, keys)
                    t = relation(teacher_states[text], head, teacher_states.shape[-1] // heads, query, keys)
                    total += sum(q * math.log(q / p) for p, q in zip(s, t, strict=True)) / heads
    return total / 3 / num_tokens


def three(*shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(3)]


@settings(deadline=None, max_examples=15)
@given(
    heads=st.integers(1, 3),
    student_head_size=st.integers(1, 3),
    teacher_head_size=st.integers(1, 4),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seed=st.integers(0, 100),
)
def test_loss_is_that_of_loops(heads, student_head_size, teacher_head_size, lengths, seed):
    shape = (len(lengths), max(lengths))
    mask = torch.tensor([[int(t < length) for t in range(shape[1])] for length in lengths])
    student = three(*shape, heads * student_head_size, seed=seed)
    teacher = three(*shape, heads * teacher_head_size, seed=seed + 1000)
    loss = relation_loss(student, teacher, mask, heads, 7)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(slow_relation_loss(student, teacher, mask, heads, 7), rel=1e-9, abs=1e-12)


def test_golden_value():
    # one head of size 1, tokens 0 and 1: the second attends to itself with probability e / (1 + e), or 1/2 if all is 0
    teacher = torch.tensor([[[0.0], [1.0]]])
    student = torch.zeros(1, 2, 1)
    p = math.e / (1 + math.e)
    expected = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    loss = relation_loss([student] * 3, [teacher] * 3, torch.ones(1, 2), 1, 1)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_gradient_is_that_of_numbers():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    teacher = three(3, 3, 6, seed=1)
    student = [states.requires_grad_() for states in three(3, 3, 4, seed=2)]
    assert torch.autograd.gradcheck(lambda *s: relation_loss(s, teacher, mask, 2, 5), student)


def test_a_student_with_its_teachers_relations_has_nothing_to_learn():
    teacher = three(2, 5, 6, seed=1, dtype=torch.float32)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    # relations do not change when each head is rotated
    student = [(states.view(2, 5, 2, 3) @ rotation).flatten(2).requires_grad_() for states in teacher]
    loss = relation_loss(student, teacher, mask, 2, 8)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert all(states.grad.abs().max() < 1e-6 for states in student)
    assert relation_loss(student, [states.flip(1) for states in teacher], mask, 2, 8) > 0.01


def test_what_padding_holds_changes_nothing():
    student, teacher = three(2, 4, 6, seed=1), three(2, 4, 4, seed=2)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])

    def padded(states):
        wide = torch.full((3, 6, states.shape[-1]), torch.nan, dtype=states.dtype)
        wide[:2, :4] = states
        wide[1, 2:] = torch.nan
        return wide

    wide_mask = torch.zeros(3, 6, dtype=torch.long)
    wide_mask[:2, :4] = mask
    leaves = [states.requires_grad_() for states in student]
    wide_leaves = [padded(states.detach()).requires_grad_() for states in student]
    loss = relation_loss(leaves, teacher, mask, 2, 6)
    wide_loss = relation_loss(wide_leaves, [padded(states) for states in teacher], wide_mask, 2, 6)
    torch.testing.assert_close(wide_loss, loss)
    loss.backward()
    wide_loss.backward()
    for leaf, wide_leaf in zip(leaves, wide_leaves, strict=True):
        torch.testing.assert_close(wide_leaf.grad[wide_mask.bool()], leaf.grad[mask.bool()])
        assert (wide_leaf.grad[~wide_mask.bool()] == 0).all()


def test_parts_of_a_batch_add_up():
    student, teacher = three(4, 3, 6, seed=1), three(4, 3, 9, seed=2)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    whole = relation_loss(student, teacher, mask, 3, 9)
    parts = [
        relation_loss([s[rows] for s in student], [t[rows] for t in teacher], mask[rows], 3, torch.tensor(9.0))
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_large_scores_stay_finite():
    student, teacher = (three(1, 4, 8, seed=seed, dtype=torch.float32) for seed in (1, 2))
    student = [(100 * states).requires_grad_() for states in student]
    loss = relation_loss(student, [1e4 * states for states in teacher], torch.ones(1, 4), 2, 4)
    loss.backward()
    assert loss.isfinite()
    assert all(states.grad.isfinite().all() for states in student)


def test_autocast_does_not_round_the_scores():
    student, teacher = (three(2, 8, 16, seed=seed, dtype=torch.float32) for seed in (1, 2))
    mask = torch.ones(2, 8)
    exact = relation_loss(student, teacher, mask, 2, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(relation_loss(student, teacher, mask, 2, 16), exact, rtol=0, atol=0)
    low = relation_loss([s.bfloat16() for s in student], [t.bfloat16() for t in teacher], mask, 2, 16)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=0.02, atol=0)


def test_heads_that_do_not_divide_a_size_are_refused():
    with pytest.raises(ValueError, match=r"relation_heads=4 does not divide the student's size 6 .* one of 1, 2, 3, 6"):
        relation_loss(three(1, 2, 6, seed=1), three(1, 2, 8, seed=2), torch.ones(1, 2), 4, 2)
    with pytest.raises(ValueError, match="relation_heads=3 does not divide the teacher's size 8"):
        relation_loss(three(1, 2, 6, seed=1), three(1, 2, 8, seed=2), torch.ones(1, 2), 3, 2)


@pytest.mark.parametrize(
    ("sizes", "wanted", "heads"), [((384, 768), 48, 48), ((300, 768), 48, 12), ((288, 1024), 64, 32), ((7, 768), 48, 1)]
)
def test_common_relation_heads(sizes, wanted, heads):
    assert common_relation_heads(*sizes, wanted) == heads


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 64))
def test_common_relation_heads_are_the_most_that_divide_both(student, teacher, wanted):
    dividing = [heads for heads in range(1, wanted + 1) if student % heads == 0 and teacher % heads == 0]
    assert common_relation_heads(student, teacher, wanted) == max(dividing)


def test_no_relation_head_is_refused():
    with pytest.raises(ValueError, match="relation_heads=0 must be at least 1"):
        common_relation_heads(8, 8, 0)
