"""The loss on predicted tokens against the teacher's, against a slow and obvious reimplementation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses.decoders import logits_of, make_decoder, make_teacher_decoder, probabilities

from kdnas_hf.distillation.losses import logit_loss
from kdnas_hf.distillation.token_logits import DecoderInputs


@settings(deadline=None, max_examples=15)
@given(
    positions=st.integers(0, 3),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    vocabulary=st.integers(1, 7),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    seed=st.integers(0, 50),
)
def test_loss_is_that_of_loops(positions, sizes, vocabulary, temperature, seed):
    student = make_decoder(positions, sizes[0], vocabulary, seed)
    teacher = make_teacher_decoder(positions, sizes[1], vocabulary, seed=seed + 100)
    divergence = 0.0
    for student_logits, teacher_logits in zip(logits_of(student).tolist(), logits_of(teacher).tolist(), strict=True):
        p, q = probabilities(student_logits, temperature), probabilities(teacher_logits, temperature)
        divergence += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)) * temperature**2 / 5
    loss = logit_loss(student, teacher, temperature, 5)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(divergence, rel=1e-9, abs=1e-12)


def test_golden_values():
    states = torch.ones(1, 1)
    student = DecoderInputs(states, torch.zeros(2, 1), None)
    teacher = DecoderInputs(states, torch.tensor([[math.log(9)], [0.0]]), None)
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert logit_loss(student, teacher, 1.0, 1).item() == pytest.approx(expected)
    # at temperature 2 the odds of 9 to 1 are 3 to 1
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert logit_loss(student, teacher, 2.0, 1).item() == pytest.approx(expected)


def test_a_student_that_predicts_as_its_teacher_has_nothing_to_learn():
    teacher = make_teacher_decoder(4, 3, 50, dtype=torch.float32)
    student = DecoderInputs(*(tensor.clone().requires_grad_() for tensor in teacher))
    loss = logit_loss(student, teacher, 2.0, 4)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert all(tensor.grad.abs().max() < 1e-6 for tensor in student)


def test_adding_a_constant_to_logits_changes_nothing():
    student = make_decoder(4, 3, 50, dtype=torch.float32)
    teacher = make_teacher_decoder(4, 3, 50, dtype=torch.float32)
    moved = logit_loss(student._replace(bias=student.bias + 50), teacher, 1.0, 4)
    torch.testing.assert_close(moved, logit_loss(student, teacher, 1.0, 4), rtol=1e-4, atol=0)


def test_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="the student predicts vocab_size=7 tokens, its teacher 8; logits can only be"):
        logit_loss(make_decoder(2, 3, 7), make_teacher_decoder(2, 3, 8), 1.0, 2)
