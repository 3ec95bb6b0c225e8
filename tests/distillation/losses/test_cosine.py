"""The cosine loss, against a slow and obvious reimplementation."""

import math

import pytest
import torch

from kdnas_hf.distillation.losses import cosine_loss


def test_loss_is_the_mean_over_tokens_and_pairs():
    torch.manual_seed(0)
    predictions = [torch.randn(5, 3) for _ in range(2)]
    targets = [torch.randn(5, 3) for _ in range(2)]
    total = 0.0
    for prediction, target in zip(predictions, targets, strict=True):
        for p, t in zip(prediction.tolist(), target.tolist(), strict=True):
            product = sum(a * b for a, b in zip(p, t, strict=True))
            total += 1 - product / math.sqrt(sum(a * a for a in p)) / math.sqrt(sum(b * b for b in t))
    assert cosine_loss(predictions, targets, 5).item() == pytest.approx(total / (5 * 2), rel=1e-6)


def test_golden_values():
    target = torch.tensor([[3.0, 0.0]])
    for prediction, expected in (([[1.0, 0.0]], 0), ([[0.0, 7.0]], 1), ([[-2.0, 0.0]], 2), ([[1.0, 1.0]], 0.2928932)):
        assert cosine_loss([torch.tensor(prediction)], [target], 1).item() == pytest.approx(expected, abs=1e-6)


def test_lengths_of_vectors_do_not_matter():
    torch.manual_seed(0)
    prediction, target = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(
        cosine_loss([prediction * 100], [target * 0.1], 4), cosine_loss([prediction], [target], 4)
    )


def test_parts_of_a_batch_add_up_to_the_whole():
    torch.manual_seed(0)
    p, t = torch.randn(7, 4), torch.randn(7, 4)
    parts = cosine_loss([p[:3]], [t[:3]], 7) + cosine_loss([p[3:]], [t[3:]], torch.tensor(7.0))
    torch.testing.assert_close(parts, cosine_loss([p], [t], 7))


def test_gradient_is_that_of_numbers():
    torch.manual_seed(0)
    prediction, target = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 3).double()
    assert torch.autograd.gradcheck(lambda p: cosine_loss([p], [target], 4), prediction)


def test_a_vector_of_zeros_has_a_finite_gradient():
    prediction = torch.zeros(2, 3, requires_grad=True)
    loss = cosine_loss([prediction], [torch.tensor([[1.0, 2, 3], [0, 0, 0]])], 2)
    loss.backward()
    assert loss.item() == 1
    assert prediction.grad.abs().max() < 1e5


def test_bf16_is_close_to_float32():
    torch.manual_seed(0)
    prediction, target = torch.randn(20, 32), torch.randn(20, 32)
    low = cosine_loss([prediction.bfloat16()], [target.bfloat16()], 20)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, cosine_loss([prediction], [target], 20), rtol=0.01, atol=0)
