"""What a budget is predicted to admit: shapes' costs exactly, latency within the error of a regression."""

import json
from collections import Counter
from random import Random

import numpy as np
import pytest
import torch

from kdnas_hf import KDNASModel, LatencyBenchmark, SearchSpace
from kdnas_hf.latency import Latency
from kdnas_hf.search.budgets import UNLIMITED, Budget
from kdnas_hf.search.latencies import ArchitectureLatencies
from kdnas_hf.search.predicted_budget import NEAR, SPREAD, PredictedBudget

SPACE = {
    "num_hidden_layers": [1, 2, 3, 4, 6],
    "num_attention_heads": [4, 12],
    "hidden_size": [192, 288, 384],
    "intermediate_size": [384, 768, 1536],
    "hidden_act": ["gelu", "relu"],
}
TEACHER_MS = 80.0


def latency_of(architecture):
    """Milliseconds of a machine on which gelu is dear."""
    hidden = architecture.hidden_size / 1000
    return 0.5 + sum(
        0.2 + 8 * hidden * hidden + 5 * hidden * inner / 1000 + 0.02 * heads + (name == "gelu") * inner / 2000
        for inner, heads, name in zip(
            *(architecture.per_layer(one) for one in ("intermediate_size", "num_attention_heads", "hidden_act")),
            strict=True,
        )
    )


class FormulaLatencies(ArchitectureLatencies):
    """Latencies of a formula, with noise, on a machine that is slower at each turn."""

    def __init__(self, noise=0.0, **config):
        super().__init__(None, lambda one: one.to_config(**{"vocab_size": 1000} | config), LatencyBenchmark())
        self.noise = np.random.default_rng(0), noise
        self.turns = []

    def measure(self, architectures, repeats=None):
        self.turns.append(list(architectures.values()))
        slow = 1 + 0.3 * len(self.turns)
        random, noise = self.noise
        return {
            number: Latency(slow * latency_of(one) * float(np.exp(random.normal(0, noise))), 0.1, slow * TEACHER_MS)
            for number, one in architectures.items()
        }


def predict(budget, space=SPACE, noise=0.0, **config):
    latencies = FormulaLatencies(noise, **config)
    predicted = PredictedBudget(SearchSpace.from_dict(space), budget, latencies)
    predicted.fit(predicted.time())
    return predicted


@pytest.mark.parametrize(
    "budget",
    [
        Budget(parameters=3_000_000),
        Budget(encoder_parameters=2_500_000),
        Budget(size_mb=11),
        Budget(flops=4e8),
        Budget(encoder_parameters=2_000_000, flops=4e8, memory_mb=1e6),
    ],
    ids=str,
)
def test_limits_on_shapes_are_met_exactly_and_nothing_is_timed_for_them(budget):
    predicted = predict(budget)
    assert predicted.latencies.turns == []
    members = list(predicted.space)[::7]

    def costs(architecture):
        with torch.device("meta"):
            model = KDNASModel(architecture.to_config(vocab_size=1000))
        parameters = sum(p.numel() for p in model.parameters())
        hidden, depth = architecture.hidden_size, architecture.num_hidden_layers
        maps = sum(module.weight.numel() for module in model.encoder.modules() if isinstance(module, torch.nn.Linear))
        return {
            "parameters": parameters,
            "encoder_parameters": sum(p.numel() for p in model.encoder.parameters()),
            "size_mb": 4 * parameters / 1e6,
            "flops": 128 * (2 * maps + 4 * depth * 128 * hidden),
        }

    expected = [budget.met_by(costs(one)) for one in members]
    assert 0 < sum(expected) < len(members)
    assert predicted.admits(members).tolist() == expected


@pytest.mark.parametrize(("budget", "limit_ms"), [(Budget(8), 10.0), (Budget(speedup=4, latency_ms=12), None)])
def test_few_are_lost_that_would_meet_the_budget_and_few_are_tried_that_miss_it(budget, limit_ms):
    predicted = predict(budget, noise=0.03)
    members = list(predicted.space)
    latencies = np.array([latency_of(one) for one in members])
    if limit_ms is None:
        teacher_ms = predicted.expected(members[:1])
        limit_ms = min(12 * TEACHER_MS / float((teacher_ms["speedup"] * teacher_ms["latency_ms"])[0]), TEACHER_MS / 4)
    admitted = predicted.admits(members)
    assert (latencies <= limit_ms).sum() > 20
    assert admitted[latencies <= limit_ms].mean() >= 0.95
    assert not admitted[latencies > 1.2 * limit_ms].any()
    assert 0 < predicted.model.margin < 0.15


def test_the_design_is_spread_over_the_space_and_then_near_the_budget():
    predicted = predict(Budget(8))
    first, second = predicted.latencies.turns
    assert (len(first), len(second)) == (SPREAD, NEAR)
    assert 20 <= len({*first, *second}) <= 40
    for name, choices in SPACE.items():
        chosen = Counter(getattr(one, name) for one in first)
        assert {min(choices), max(choices)} <= set(chosen)
        assert len(chosen) >= len(choices) - 1
        assert min(chosen.values()) >= 2
    speedups = [TEACHER_MS / latency_of(one) for one in second]
    assert all(7.2 < speedup < 8.8 for speedup in speedups)


def test_what_was_timed_survives_as_json():
    latencies = FormulaLatencies(0.03)
    space = SearchSpace.from_dict(SPACE | {"per_layer": True, "embedding_size": [None, 48]})
    predicted, again = (PredictedBudget(space, Budget(8), latencies) for _ in range(2))
    rows = predicted.time()
    predicted.fit(rows)
    again.fit(json.loads(json.dumps(rows)))
    members = space.sample(Random(3), 500)
    assert again.admits(members).tolist() == predicted.admits(members).tolist()
    assert len(latencies.turns) == 2


def test_a_space_whose_layers_differ_is_filtered_alike():
    predicted = predict(Budget(8), SPACE | {"per_layer": True, "embedding_size": [None, 48]}, noise=0.02)
    members = predicted.space.sample(Random(3), 1000)
    latencies = np.array([latency_of(one) for one in members])
    admitted = predicted.admits(members)
    meets = latencies <= TEACHER_MS / 8
    assert 100 < meets.sum() < 900
    assert admitted[meets].mean() >= 0.95
    assert not admitted[latencies > 1.2 * TEACHER_MS / 8].any()


def test_all_of_a_small_space_are_timed_and_those_that_cost_too_much_are_not():
    small = SPACE | {"num_attention_heads": [4], "hidden_act": ["gelu"], "intermediate_size": [384]}
    predicted = predict(Budget(8), small)
    assert [len(turn) for turn in predicted.latencies.turns] == [15]
    assert set(predicted.latencies.turns[0]) == set(predicted.space)
    limited = predict(Budget(8, encoder_parameters=1_500_000), small)
    assert {one.encoder_parameters <= 1_500_000 for turn in limited.latencies.turns for one in turn} == {True}
    assert sum(len(turn) for turn in limited.latencies.turns) < 15


def test_a_space_of_one_architecture_is_not_regressed():
    one = {name: choices[:1] for name, choices in SPACE.items()}
    predicted = predict(Budget(8), one)
    assert predicted.admits(list(predicted.space)).tolist() == [True]


def test_without_a_limit_everything_is_admitted():
    predicted = predict(UNLIMITED)
    assert predicted.latencies.turns == []
    assert predicted.admits(list(predicted.space)).all()
    assert predicted.admits([]).shape == (0,)
    assert predicted.admits([]).dtype == bool


def test_memory_is_left_to_be_measured():
    assert predict(Budget(memory_mb=1)).admits(list(SearchSpace.from_dict(SPACE))).all()


def test_a_budget_that_no_shape_can_meet_is_refused_before_anything_is_timed():
    with pytest.raises(ValueError, match="no architecture of the space") as raised:
        predict(Budget(8, size_mb=20), vocab_size=250_000)
    message = str(raised.value)
    assert message == (
        "no architecture of the space meets the budget (at least 8x faster than the teacher and at most 20 MB); the "
        "nearest, 1x192 heads 4 ffn 384 gelu, is expected to have 194 MB; allow smaller shapes or a wider size_mb."
    )


def test_a_speed_up_that_none_is_expected_to_reach_is_refused():
    smallest = min(SearchSpace.from_dict(SPACE), key=latency_of)
    with pytest.raises(ValueError, match="no architecture of the space") as raised:
        predict(Budget(80))
    assert f"the nearest, {smallest}, is expected to have {TEACHER_MS / latency_of(smallest):.3g}x" in str(raised.value)
    assert str(raised.value).endswith("; allow smaller shapes or a smaller speedup.")
    assert "\n" not in str(raised.value)
