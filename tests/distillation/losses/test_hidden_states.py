"""The hidden-state loss and R², against slow and obvious reimplementations."""

import math

import pytest
import torch

from kdnas_hf.distillation import ExplainedVariance, HiddenStateProjections, LayerPair, hidden_state_loss
from kdnas_hf.distillation.losses import cosine_loss


def test_loss_is_the_mean_over_tokens_dimensions_and_pairs():
    torch.manual_seed(0)
    predictions = [torch.randn(5, 3) for _ in range(2)]
    targets = [torch.randn(5, 3) for _ in range(2)]
    total = 0.0
    for prediction, target in zip(predictions, targets, strict=True):
        for token in range(5):
            for dimension in range(3):
                total += float(prediction[token, dimension] - target[token, dimension]) ** 2
    assert hidden_state_loss(predictions, targets, 5).item() == pytest.approx(total / (5 * 3 * 2), rel=1e-6)


def test_loss_golden_value():
    prediction, target = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert hidden_state_loss([prediction], [target], 1).item() == pytest.approx((1 + 4) / 2)


def test_parts_of_a_batch_add_up_to_the_whole():
    torch.manual_seed(0)
    prediction, target = torch.randn(7, 4), torch.randn(7, 4)
    whole = hidden_state_loss([prediction], [target], 7)
    parts = hidden_state_loss([prediction[:3]], [target[:3]], 7) + hidden_state_loss([prediction[3:]], [target[3:]], 7)
    torch.testing.assert_close(whole, parts)


def test_cosine_loss_is_the_mean_over_tokens_and_pairs():
    torch.manual_seed(0)
    predictions = [torch.randn(5, 3) for _ in range(2)]
    targets = [torch.randn(5, 3) for _ in range(2)]
    total = 0.0
    for prediction, target in zip(predictions, targets, strict=True):
        for p, t in zip(prediction.tolist(), target.tolist(), strict=True):
            product = sum(a * b for a, b in zip(p, t, strict=True))
            total += 1 - product / math.sqrt(sum(a * a for a in p)) / math.sqrt(sum(b * b for b in t))
    assert cosine_loss(predictions, targets, 5).item() == pytest.approx(total / (5 * 2), rel=1e-6)


def test_cosine_loss_golden_values():
    target = torch.tensor([[3.0, 0.0]])
    for prediction, expected in (([[1.0, 0.0]], 0), ([[0.0, 7.0]], 1), ([[-2.0, 0.0]], 2), ([[1.0, 1.0]], 0.2928932)):
        assert cosine_loss([torch.tensor(prediction)], [target], 1).item() == pytest.approx(expected, abs=1e-6)


def test_cosine_loss_does_not_depend_on_lengths_of_vectors():
    torch.manual_seed(0)
    prediction, target = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(
        cosine_loss([prediction * 100], [target * 0.1], 4), cosine_loss([prediction], [target], 4)
    )


def test_cosine_loss_of_parts_of_a_batch_adds_up_to_the_whole():
    torch.manual_seed(0)
    p, t = torch.randn(7, 4), torch.randn(7, 4)
    parts = cosine_loss([p[:3]], [t[:3]], 7) + cosine_loss([p[3:]], [t[3:]], torch.tensor(7.0))
    torch.testing.assert_close(parts, cosine_loss([p], [t], 7))


def test_cosine_gradient_is_that_of_numbers():
    torch.manual_seed(0)
    prediction, target = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 3).double()
    assert torch.autograd.gradcheck(lambda p: cosine_loss([p], [target], 4), prediction)


def test_cosine_of_a_vector_of_zeros_has_a_finite_gradient():
    prediction = torch.zeros(2, 3, requires_grad=True)
    loss = cosine_loss([prediction], [torch.tensor([[1.0, 2, 3], [0, 0, 0]])], 2)
    loss.backward()
    assert loss.item() == 1
    assert prediction.grad.abs().max() < 1e5


def test_cosine_loss_in_bf16_is_close_to_float32():
    torch.manual_seed(0)
    prediction, target = torch.randn(20, 32), torch.randn(20, 32)
    low = cosine_loss([prediction.bfloat16()], [target.bfloat16()], 20)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, cosine_loss([prediction], [target], 20), rtol=0.01, atol=0)


def test_projections_per_layer_map_to_each_teacher_layer():
    pairs = [LayerPair(1, 2), LayerPair(2, 3), LayerPair(2, 4)]
    projections = HiddenStateProjections(pairs, hidden_size=3, teacher_hidden_size=5)
    states = torch.randn(6, 3)
    (only,) = projections(1, states)
    first, second = projections(2, states)
    torch.testing.assert_close(only, projections.maps["1"](states))
    torch.testing.assert_close(torch.cat([first, second], dim=-1), projections.maps["2"](states))
    assert first.shape == (6, 5)


def test_shared_projection_is_one_map_to_twice_the_teachers_size():
    pairs = [LayerPair(1, 2), LayerPair(1, 3), LayerPair(2, 4), LayerPair(2, 4)]
    projections = HiddenStateProjections(pairs, hidden_size=3, teacher_hidden_size=5, shared=True)
    assert [tuple(p.shape) for p in projections.parameters()] == [(10, 3), (10,)]
    states = torch.randn(6, 3)
    for layer in (1, 2):
        torch.testing.assert_close(torch.cat(projections(layer, states), dim=-1), projections.maps["shared"](states))


def test_projections_start_as_the_basis():
    basis = torch.linalg.qr(torch.randn(5, 3)).Q
    projections = HiddenStateProjections([LayerPair(1, 2), LayerPair(1, 3)], 3, 5, basis=basis)
    for prediction in projections(1, torch.eye(3)):
        torch.testing.assert_close(prediction, basis.T)


def r2_of(prediction, target):
    """R² averaged over dimensions, as scikit-learn's r2_score does."""
    scores = []
    for d in range(target.shape[1]):
        error = ((prediction[:, d] - target[:, d]) ** 2).sum()
        total = ((target[:, d] - target[:, d].mean()) ** 2).sum()
        scores.append(1 - error / total)
    return float(sum(scores) / len(scores))


def test_r2_over_batches_is_that_of_all_tokens():
    torch.manual_seed(0)
    target = torch.randn(40, 6) * torch.tensor([1, 10, 0.1, 3, 5, 100.0]) + 7
    prediction = target + torch.randn(40, 6) * target.std(0) * 0.5
    variance = ExplainedVariance({("a", 0): 12}, 6)
    for rows in torch.arange(40).split(7):
        variance.add_targets({12: target[rows]})
        variance.add_prediction(("a", 0), prediction[rows], target[rows])
    assert variance.r2(("a", 0)) == pytest.approx(r2_of(prediction, target), abs=1e-5)
    assert variance.mean_squared_error(("a", 0)) == pytest.approx(float(((prediction - target) ** 2).mean()), rel=1e-5)


def test_r2_does_not_depend_on_the_scale_of_the_targets():
    torch.manual_seed(0)
    target, noise = torch.randn(30, 4), torch.randn(30, 4)
    scale, shift = torch.tensor([0.01, 1, 50, 3]), torch.tensor([0, 5, -2, 1.0])
    scores = []
    for a, b in ((target, target + noise), (target * scale + shift, (target + noise) * scale + shift)):
        variance = ExplainedVariance({("x", 0): 1}, 4)
        variance.add_targets({1: a})
        variance.add_prediction(("x", 0), b, a)
        scores.append(variance.r2(("x", 0)))
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_predicting_the_mean_explains_nothing():
    target = torch.randn(50, 3)
    variance = ExplainedVariance({("x", 0): 1}, 3)
    variance.add_targets({1: target})
    variance.add_prediction(("x", 0), target.mean(0).expand_as(target), target)
    assert variance.r2(("x", 0)) == pytest.approx(0, abs=1e-6)
