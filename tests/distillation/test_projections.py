"""Maps from a student's states to its teacher's: their shape, and where least squares lets them start."""

import pytest
import torch
from losses.given_states import make_loss, make_states
from tiny_runs import run_arguments, student_shape, trained_parameters
from torch import nn

from kdnas_hf import DistillationTrainer, Teacher
from kdnas_hf.distillation.layer_mapping import LayerPair
from kdnas_hf.distillation.losses.cosine import CosineLoss
from kdnas_hf.distillation.losses.hidden_states import HiddenStatesLoss
from kdnas_hf.distillation.projections import HiddenStateProjections
from kdnas_hf.utils.least_squares import LeastSquares


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


# ---- least squares ----


def ridge(inputs, targets, prior=None):
    """Ridge regression as ordinary least squares on rows that pull each coefficient towards its prior."""
    x = torch.cat([inputs.double(), torch.ones(len(inputs), 1)], dim=1)
    pull = torch.eye(x.shape[1], dtype=torch.float64)[:-1] * (0.01 * inputs.double().square().sum(0).mean()).sqrt()
    prior = torch.zeros(x.shape[1], targets.shape[1]).double() if prior is None else prior
    solution = torch.linalg.lstsq(torch.cat([x, pull]), torch.cat([targets.double(), pull @ prior])).solution
    return solution[:-1].T, solution[-1]


def fitted(parts, basis=None, outputs=6):
    regression = LeastSquares()
    for inputs, targets in parts:
        regression.add(inputs, targets)
    linear = nn.Linear(parts[0][0].shape[1], outputs)
    regression.set_map(linear, basis)
    return linear


def related(tokens=60, size=4, outputs=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, size, generator=generator) + 2
    weight = torch.randn(size, outputs, generator=generator)
    return inputs, inputs @ weight + 5 + 0.3 * torch.randn(tokens, outputs, generator=generator)


def test_a_fit_is_the_ridge_regression_of_all_batches():
    inputs, targets = related()
    linear = fitted([(inputs[rows], targets[rows]) for rows in torch.arange(60).split(17)])
    weight, bias = ridge(inputs, targets)
    torch.testing.assert_close(linear.weight.double(), weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(linear.bias.double(), bias, rtol=1e-4, atol=1e-4)
    # the penalty shrinks
    plain = torch.linalg.lstsq(torch.cat([inputs, torch.ones(60, 1)], dim=1), targets).solution
    assert linear.weight.norm() < plain[:-1].norm() * 0.999


def test_autocast_does_not_round_a_fit():
    parts = [related()]
    exact = fitted(parts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fitted(parts).weight, exact.weight)


def test_with_a_basis_the_regression_starts_from_each_targets_own_direction():
    basis = torch.linalg.qr(torch.randn(6, 4, generator=torch.Generator().manual_seed(1))).Q
    inputs, targets = related(outputs=12)
    linear = fitted([(inputs, targets)], basis, outputs=12)
    prior = torch.zeros(5, 12, dtype=torch.float64)
    for column in range(12):  # two teacher layers, one basis
        along = (inputs @ basis[column % 6]).double()
        slope, constant = torch.linalg.lstsq(
            torch.stack([along, torch.ones(60)], dim=1).double(), targets[:, column : column + 1].double()
        ).solution
        prior[:-1, column] = slope * basis[column % 6]
        prior[-1, column] = constant
    weight, bias = ridge(inputs, targets, prior)
    torch.testing.assert_close(linear.weight.double(), weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(linear.bias.double(), bias, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_with_a_basis_an_exact_copy_starts_without_error(seed):
    generator = torch.Generator().manual_seed(seed)
    std = torch.tensor([0.3, 1, 3, 30, 0.5, 0])  # in the last dimension the teacher is constant
    states = torch.randn(200, 6, generator=generator) * std + 4
    targets = (states - states.mean(0)) / std.clamp_min(0.1) + 1
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    inputs = states @ basis  # the teacher's own states in the student's coordinates
    with torch.no_grad():
        error = (fitted([(inputs, targets)], basis)(inputs) - targets).square().mean()
        shrunk = (fitted([(inputs, targets)])(inputs) - targets).square().mean()
    assert error < 1e-4 < 0.1 < shrunk


@pytest.mark.parametrize("loss_class", [HiddenStatesLoss, CosineLoss])
def test_losses_on_states_are_fitted_layer_by_layer(loss_class):
    loss = make_loss(loss_class)
    parts = [make_states(lengths, seed) for seed, lengths in enumerate(([6, 9, 2], [7, 4, 8], [8, 8, 5]))]
    loss.fit(iter(parts))
    for layer, teachers in {1: [2], 2: [3, 4]}.items():
        inputs = torch.cat([student.states(layer) for student, _ in parts])
        targets = torch.cat([torch.cat([batch.teacher_states(t) for t in teachers], dim=1) for _, batch in parts])
        weight, bias = ridge(inputs, targets)
        torch.testing.assert_close(loss.projections.map_of(layer).weight.double(), weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loss.projections.map_of(layer).bias.double(), bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arguments", [{"projection": "shared"}, {"projection_init": "random"}])
def test_a_shared_or_a_random_projection_keeps_its_start(arguments):
    loss = make_loss(HiddenStatesLoss, **arguments)
    before = [p.clone() for p in loss.parameters()]
    loss.fit([make_states([6, 9, 2], seed=0)])
    assert all(torch.equal(p, q) for p, q in zip(loss.parameters(), before, strict=True))


# ---- of a training ----


@pytest.mark.parametrize("init", ["embeddings", "random"])
def test_a_fitted_start_explains_more_of_the_teacher(init, teacher, train_texts, heldout_texts, tmp_path):
    r2 = {}
    for projection in ("fit", "random"):
        args = run_arguments(tmp_path, student_init=init, projection_init=projection, statistics_sentences=256)
        trainer = DistillationTrainer(student_shape(teacher), teacher, args, train_texts, heldout_texts)
        r2[projection] = trainer.evaluate()["eval_r2"]
    assert r2["fit"] > max(0, r2["random"])


def test_a_student_of_copied_layers_starts_with_nothing_to_learn(teacher, train_texts, heldout_texts, tmp_path):
    shape = student_shape(teacher, hidden_size=32, num_hidden_layers=4, intermediate_size=64)
    args = run_arguments(tmp_path, student_init="layers", statistics_sentences=256)
    trainer = DistillationTrainer(shape, teacher, args, train_texts, heldout_texts)
    metrics = trainer.evaluate()
    assert metrics["eval_r2"] > 0.999
    assert metrics["eval_loss"] < 1e-3


@pytest.mark.parametrize(("arguments", "asked"), [({}, True), ({"projection_init": "random"}, False)])
def test_the_teacher_is_asked_for_a_sample_only_where_a_loss_is_fitted(
    arguments, asked, teacher, train_texts, tmp_path, monkeypatch
):
    args = run_arguments(tmp_path, **arguments)
    statistics = DistillationTrainer(student_shape(teacher), teacher, args, train_texts).statistics
    calls, call = [], Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda *args, **kwargs: calls.append(1) or call(*args, **kwargs))
    DistillationTrainer(student_shape(teacher), teacher, args, train_texts, statistics=statistics)
    assert bool(calls) == asked


def test_students_that_were_trained_are_not_fitted_again(teacher, train_texts, tmp_path):
    first = DistillationTrainer(student_shape(teacher), teacher, run_arguments(tmp_path), train_texts)
    first.train()
    learned = trained_parameters(first)
    second = DistillationTrainer(first.pool, teacher, run_arguments(tmp_path), train_texts)
    for name, value in trained_parameters(second).items():
        assert torch.equal(value, learned[name]), name
