"""The regression of latency: it predicts what it has not seen, and says how well."""

import csv
from pathlib import Path
from random import Random

import numpy as np
import pytest

from kdnas_hf.export.latency_model import LatencyModel
from kdnas_hf.search import SearchSpace
from kdnas_hf.students import Architecture

NUMBERS = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
TABLE = Path(__file__).parents[2] / "benchmarks" / "architecture_table.csv"

SPACE = SearchSpace.from_dict(
    {
        "num_hidden_layers": [1, 2, 3, 6],
        "num_attention_heads": [4],
        "hidden_size": [96, 192, 384],
        "intermediate_size": [384, 768],
        "hidden_act": ["gelu", "relu"],
    }
)


def latency_of(architecture):
    """Milliseconds of a machine on which gelu is dear."""
    hidden, inner = architecture.hidden_size / 1000, architecture.intermediate_size / 1000
    dear = inner if architecture.hidden_act == "gelu" else 0
    return 0.5 + architecture.num_hidden_layers * (0.2 + 8 * hidden * hidden + 5 * hidden * inner + dear)


def measured(count, noise=0.0, seed=0):
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(list(SPACE))[:count]
    return {one: latency_of(one) * float(np.exp(generator.normal(0, noise))) for one in chosen}


def error_of(model):
    return np.median(np.abs(model.errors))


def test_unmeasured_architectures_are_predicted():
    latencies = measured(20)
    model = LatencyModel.fit(latencies)
    others = [one for one in SPACE if one not in latencies]
    assert model(others) == pytest.approx([latency_of(one) for one in others], rel=0.01)
    assert error_of(model) < 0.01


def test_the_error_is_that_of_what_was_left_out():
    noisy = LatencyModel.fit(measured(20, noise=0.1))
    assert 0.02 < error_of(noisy) < 0.2
    assert error_of(LatencyModel.fit(measured(20, noise=0.02))) < error_of(noisy)


def test_errors_and_margin_are_of_fits_without_each():
    latencies = measured(12, noise=0.1)
    errors = []
    for left_out, latency in latencies.items():
        others = LatencyModel.fit({one: value for one, value in latencies.items() if one != left_out})
        errors.append(others([left_out])[0] / latency - 1)
    model = LatencyModel.fit(latencies)
    assert model.errors == pytest.approx(errors)
    assert model.margin == pytest.approx(max(np.quantile(errors, 0.95), 0.0))
    assert LatencyModel(model.activations, model.costs, np.array([-0.3, -0.1])).margin == 0.0


def test_an_activation_that_was_never_measured_is_taken_for_a_known_one():
    gelu = {one: latency for one, latency in measured(40).items() if one.hidden_act == "gelu"}
    model = LatencyModel.fit(gelu)
    relu = next(one for one in SPACE if one.hidden_act == "relu")
    twin = next(one for one in SPACE if one.hidden_act == "gelu" and str(one)[:-4] == str(relu)[:-4])
    assert model([relu])[0] == pytest.approx(model([twin])[0])


def test_the_margin_is_what_few_of_those_that_were_left_out_exceed():
    latencies = measured(40, noise=0.05)
    model = LatencyModel.fit(latencies)
    too_much = []
    for left_out, latency in latencies.items():
        rest = LatencyModel.fit({one: value for one, value in latencies.items() if one != left_out})
        too_much.append(rest([left_out])[0] / latency - 1)
    assert model.errors == pytest.approx(too_much)
    assert np.median(np.abs(model.errors)) == pytest.approx(np.median(np.abs(too_much)))
    assert sum(error > model.margin for error in too_much) == 2
    assert LatencyModel.fit(measured(20)).margin < 0.01


def test_latencies_of_real_students_are_predicted_within_a_few_per_cent():
    latencies = {}
    with TABLE.open() as file:
        for row in csv.DictReader(file):
            numbers = [int(row[name]) for name in NUMBERS]
            latencies[Architecture(*numbers, row["hidden_act"])] = float(row["latency_ms"])
    assert len(latencies) > 100
    model = LatencyModel.fit(latencies)
    assert np.median(np.abs(model.errors)) < 0.03
    assert model.margin < 0.08


def test_one_architecture_is_too_few():
    with pytest.raises(ValueError, match="two architectures or more, not 1"):
        LatencyModel.fit(measured(1))


def test_layers_that_differ_cost_the_sum_of_theirs():
    space = SearchSpace.from_dict(SPACE.as_dict() | {"per_layer": True, "embedding_size": [None, 48]})

    def cost(one):
        alone = [
            latency_of(Architecture(1, 4, one.hidden_size, inner, name)) - 0.5
            for inner, name in zip(one.per_layer("intermediate_size"), one.per_layer("hidden_act"), strict=True)
        ]
        return 0.5 + sum(alone) + (0 if one.embedding_size is None else one.hidden_size * one.embedding_size / 1e6)

    members = space.sample(Random(0), 80)
    model = LatencyModel.fit({one: cost(one) for one in members[:40]})
    assert model(members[40:]) == pytest.approx([cost(one) for one in members[40:]], rel=0.01)
