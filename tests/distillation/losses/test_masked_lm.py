"""Masked language modeling, against a slow and obvious reimplementation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses.decoders import logits_of, make_decoder, naive_masked_lm_loss, probabilities

from kdnas_hf.distillation.losses import masked_lm_loss
from kdnas_hf.distillation.token_logits import DecoderInputs


@settings(deadline=None, max_examples=15)
@given(positions=st.integers(0, 3), size=st.integers(1, 3), vocabulary=st.integers(1, 7), seed=st.integers(0, 50))
def test_loss_is_that_of_loops(positions, size, vocabulary, seed):
    student = make_decoder(positions, size, vocabulary, seed)
    labels = [(seed + position) % vocabulary for position in range(positions)]
    cross_entropy = 0.0
    for logits, label in zip(logits_of(student).tolist(), labels, strict=True):
        cross_entropy -= math.log(probabilities(logits)[label]) / 5
    loss = masked_lm_loss(student, torch.tensor(labels, dtype=torch.long), 5)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(cross_entropy, rel=1e-9, abs=1e-12)


def test_golden_value():
    student = DecoderInputs(torch.ones(1, 1), torch.tensor([[math.log(9)], [0.0]]), None)
    assert masked_lm_loss(student, torch.tensor([1]), 1).item() == pytest.approx(-math.log(0.1))


def test_what_has_no_label_does_not_count():
    student, labels = make_decoder(4, 3, 7), torch.tensor([6, -100, 0, -100])
    loss = masked_lm_loss(student, labels, 2)
    assert loss.item() == pytest.approx(naive_masked_lm_loss(student, labels, 2).item())
    (gradient,) = torch.autograd.grad(loss, student.states)
    assert (gradient[[1, 3]] == 0).all()
    assert (gradient[[0, 2]] != 0).all()


def test_a_label_outside_of_the_vocabulary_does_not_pass_unseen():
    with pytest.raises(IndexError, match="out of bounds"):
        masked_lm_loss(make_decoder(2, 3, 7), torch.tensor([1, 7]), 2)


def test_a_model_in_bf16_gets_gradients_in_bf16():
    student = DecoderInputs(*(t.detach().bfloat16().requires_grad_() for t in make_decoder(4, 8, 50)))
    loss = masked_lm_loss(student, torch.arange(4), 4)
    assert loss.dtype == torch.float32
    exact = naive_masked_lm_loss(DecoderInputs(*(tensor.float() for tensor in student)), torch.arange(4), 4)
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)
    assert [g.dtype for g in torch.autograd.grad(loss, student)] == [torch.bfloat16] * 3
