"""The hidden-state loss and its measure, against slow and obvious reimplementations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses.given_states import PAIRS, TEACHER_SIZE, make_loss, make_states

from kdnas_hf.distillation import HiddenStateStatistics
from kdnas_hf.distillation.layer_mapping import LayerPair
from kdnas_hf.distillation.losses.hidden_states import ExplainedVariance, HiddenStatesLoss, hidden_state_loss


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


@torch.no_grad()
def test_each_layer_is_projected_to_the_teacher_layers_that_it_learns_from():
    loss = make_loss(HiddenStatesLoss)
    student, batch = make_states([4, 2], seed=0)
    batch.num_tokens = torch.tensor(6.0)
    total = 0.0
    for pair, place in zip(PAIRS, (0, 0, 1), strict=True):  # the second layer has two teachers
        linear = loss.projections.maps[str(pair.student)]
        rows = slice(place * TEACHER_SIZE, (place + 1) * TEACHER_SIZE)
        for text, token in batch.attention_mask.nonzero().tolist():
            predicted = linear.weight[rows] @ student.hidden_states[pair.student][text, token] + linear.bias[rows]
            total += float((predicted - batch.teacher.hidden_states[pair.teacher][text, token]).square().sum())
    assert loss(student, batch).item() == pytest.approx(total / (6 * TEACHER_SIZE * 3), rel=1e-5)


# ---- the measure ----


@torch.no_grad()
def measure(loss, *parts):
    measured = ExplainedVariance(loss)
    for part in parts:
        measured.add(*part)
    return measured


@torch.no_grad()
def slow_metrics(loss, parts):
    """Of all real tokens together, as scikit-learn's r2_score has it."""
    by_pair = [[], [], []]
    for student, batch in parts:
        for number, (p, t) in enumerate(zip(loss.predictions(student), loss.targets(batch), strict=True)):
            by_pair[number].append((p.double().numpy(), t.double().numpy()))
    errors, scores = [], []
    for pairs in by_pair:
        predicted, target = (np.concatenate(values) for values in zip(*pairs, strict=True))
        errors.append(((predicted - target) ** 2).mean())
        of_dimensions = []
        for dimension in range(target.shape[1]):
            total = ((target[:, dimension] - target[:, dimension].mean()) ** 2).sum()
            of_dimensions.append(1 - ((predicted[:, dimension] - target[:, dimension]) ** 2).sum() / total)
        scores.append(np.mean(of_dimensions))
    return {
        "loss": np.mean(errors), "error": 1 - scores[2], "last_layer_loss": errors[2], "r2": scores[2],
        "r2_layer_1": scores[0], "r2_layer_2": scores[2],
    }  # fmt: skip


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=3),
    st.sampled_from([1.0, 100.0]),
    st.integers(0, 99),
)
def test_metrics_over_batches_are_those_of_all_tokens(batches, scale, seed):
    # at least two tokens: one has no variance
    batches = [*batches, [2, 1]]
    loss = make_loss(HiddenStatesLoss)
    parts = [make_states(lengths, seed + number, scale) for number, lengths in enumerate(batches)]
    whole = measure(loss, *parts)
    assert whole.metrics() == pytest.approx(slow_metrics(loss, parts), rel=1e-4, abs=1e-5)
    # as several processes add up what each has measured
    gathered = ExplainedVariance(loss)
    gathered.sums = measure(loss, *parts[:1]).sums + measure(loss, *parts[1:]).sums
    assert gathered.metrics() == pytest.approx(whole.metrics())


def test_measured_loss_is_the_trained_one():
    loss = make_loss(HiddenStatesLoss)
    student, batch = make_states([4, 2], seed=0)
    measured = measure(loss, (student, batch)).metrics()["loss"]
    batch.num_tokens = torch.tensor(6.0)
    assert measured == pytest.approx(loss(student, batch).item())


def test_r2_is_the_same_for_raw_and_standardized_targets():
    loss = make_loss(HiddenStatesLoss)
    student, batch = make_states([6, 5, 3], seed=0, scale=3.0)
    raw = measure(loss, (student, batch)).metrics()
    statistics = HiddenStateStatistics.estimate([{layer: batch.teacher_states(layer) for layer in (2, 3, 4)}])
    _, standardized = make_states([6, 5, 3], seed=0, scale=3.0)
    for layer, states in standardized.teacher.hidden_states.items():
        standardized.teacher.hidden_states[layer] = statistics.standardize(layer, states)
    # the same predictions in the units of the targets
    for layer, teachers in loss.projections.teacher_layers.items():
        linear = loss.projections.map_of(layer)
        mean, std = (torch.cat([values[t] for t in teachers]) for values in (statistics.mean, statistics.std))
        linear.bias.data = (linear.bias.data - mean) / std
        linear.weight.data /= std[:, None]
    scaled = measure(loss, (student, standardized)).metrics()
    for name in ("r2", "r2_layer_1", "r2_layer_2"):
        assert scaled[name] == pytest.approx(raw[name], abs=1e-5)
    assert scaled["loss"] != pytest.approx(raw["loss"], rel=0.1)


def test_dimensions_in_which_the_teacher_is_constant_do_not_count():
    loss = make_loss(HiddenStatesLoss, pairs=PAIRS[:1])
    student, batch = make_states([6, 5], seed=0)
    expected = slow_metrics_of_dimensions(loss, student, batch, [0, 1, 3, 4])
    batch.teacher.hidden_states[2][..., 2] = 1000.1
    _, fresh = make_states([6, 5], seed=0)
    fresh.teacher = batch.teacher
    assert measure(loss, (student, fresh)).metrics()["r2"] == pytest.approx(expected, abs=1e-5)


def slow_metrics_of_dimensions(loss, student, batch, dimensions):
    with torch.no_grad():
        predicted, target = loss.predictions(student)[0].double(), loss.targets(batch)[0].double()
    scores = [
        1 - (predicted[:, d] - target[:, d]).square().sum() / (target[:, d] - target[:, d].mean()).square().sum()
        for d in dimensions
    ]
    return float(sum(scores) / len(scores))


def test_predicting_the_mean_explains_nothing():
    loss = make_loss(HiddenStatesLoss, pairs=[LayerPair(1, 2)])
    student, batch = make_states([20, 10], seed=0)
    linear = loss.projections.map_of(1)
    linear.weight.data.zero_()
    linear.bias.data = batch.teacher_states(2).mean(0)
    assert measure(loss, (student, batch)).metrics()["r2"] == pytest.approx(0, abs=1e-6)
