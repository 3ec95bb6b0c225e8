"""The filter of a budget: what it refuses would miss the budget, and what it admits would mostly meet it."""

import csv
import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from records import LANDSCAPE

from kdnas_hf.export import Budget
from kdnas_hf.export.shape_costs import Sizes, shape_costs
from kdnas_hf.latency import Latency
from kdnas_hf.search import SearchSpace
from kdnas_hf.search.predicted_budget import NEAR, SPREAD, PredictedBudget
from kdnas_hf.students import Architecture
from kdnas_hf.students.architecture import CHOICES

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TEACHER_MS = 40.0


class Machine:
    """Times shapes as a function says, beside a teacher; between two rounds it may become slower."""

    def __init__(self, latency_of, teacher_ms=TEACHER_MS, slowdown=1.0):
        self.latency_of, self.teacher_ms, self.slowdown = latency_of, teacher_ms, slowdown
        self.rounds = []

    def measure(self, architectures):
        slower = self.slowdown ** len(self.rounds)
        self.rounds.append(list(architectures.values()))
        return {
            number: Latency(self.latency_of(one) * slower, 0.1, self.teacher_ms * slower)
            for number, one in architectures.items()
        }

    def shape_costs(self, architectures):
        sizes = [
            (one.num_hidden_layers, one.hidden_size, sum(one.per_layer("intermediate_size")), one.word_embedding_size)
            for one in architectures
        ]
        config = architectures[0].to_config(vocab_size=1000)
        return shape_costs(config, "onnx-int8", 1, 64, Sizes(*np.array(sizes, dtype=float).T))

    @property
    def timed(self):
        return [one for shapes in self.rounds for one in shapes]


def artificial_ms(architecture):
    """Milliseconds that no sum of a regression's terms is: large matrices are cheaper by the operation, and noise."""
    hidden, inner = architecture.hidden_size, np.array(architecture.per_layer("intermediate_size"))
    dear = np.array([1.3 if name == "gelu" else 1.0 for name in architecture.per_layer("hidden_act")])
    layers = (0.3 + 1e-3 * hidden**1.6 + 2e-4 * (hidden * inner) ** 0.95 + 0.004 * inner * dear).sum()
    return float((0.4 + layers) * np.exp(Random(str(architecture)).gauss(0, 0.02)))


def predicted_for(space, budget, machine):
    """The filter as a search makes it: what was timed is read from a storage."""
    predicted = PredictedBudget(space, budget, machine.shape_costs, machine.measure)
    predicted.fit(json.loads(json.dumps(predicted.time())))
    return predicted


@pytest.fixture(scope="module")
def table():
    """Latencies of 180 shapes, as measured."""
    found = {}
    with (BENCHMARKS / "architecture_table.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            shape = Architecture(*(row[name] if name == "hidden_act" else int(row[name]) for name in CHOICES))
            found.setdefault(shape, (float(row["latency_ms"]), float(row["teacher_latency_ms"])))
    return found


@pytest.mark.parametrize("speedup", [3, 4, 6, 10, 16])
def test_of_measured_shapes_few_are_lost_and_few_admitted_in_vain(table, speedup):
    machine = Machine(lambda one: table[one][0], next(iter(table.values()))[1])
    predicted = predicted_for(SearchSpace.load(str(BENCHMARKS / "architecture_table.yaml")), Budget(speedup), machine)
    able = np.array([teacher_ms / ms >= speedup for ms, teacher_ms in table.values()])
    admitted = predicted.admits(list(table))
    assert (able & ~admitted).sum() <= 0.02 * able.sum()
    assert (admitted & ~able).sum() <= 0.06 * len(table)
    assert len(set(machine.timed)) == len(machine.timed) == SPREAD + NEAR  # of 180


@pytest.mark.parametrize("budget", [Budget(5), Budget(12), Budget(latency_ms=5), Budget(7, latency_ms=9)])
@pytest.mark.parametrize("per_layer", [False, True])
def test_of_an_artificial_latency_few_are_lost_and_few_admitted_in_vain(budget, per_layer):
    space = SearchSpace.from_dict(LANDSCAPE.as_dict() | {"per_layer": per_layer})
    assert space.is_enumerable != per_layer
    predicted = predicted_for(space, budget, Machine(artificial_ms))
    members = space.sample(Random(5), 400)
    latencies = np.array([artificial_ms(one) for one in members])
    able = (TEACHER_MS / latencies >= budget.speedup) & (latencies <= budget.latency_ms)
    admitted = predicted.admits(members)
    assert 0.1 < able.mean() < 0.9
    assert (able & ~admitted).sum() <= 0.03 * able.sum()
    assert (admitted & ~able).sum() <= 0.1 * len(members)


def test_shapes_near_the_budget_are_timed(table):
    machine = Machine(lambda one: table[one][0], next(iter(table.values()))[1])
    predicted_for(SearchSpace.load(str(BENCHMARKS / "architecture_table.yaml")), Budget(6), machine)
    speedups = [[machine.teacher_ms / table[one][0] for one in shapes] for shapes in machine.rounds]
    spread, near = (np.abs(np.log(np.array(round) / 6)) for round in speedups)
    assert near.max() < 0.2 < np.median(spread)


def test_a_machine_that_becomes_slower_changes_no_prediction():
    members = list(LANDSCAPE)
    steady, slower = (
        predicted_for(LANDSCAPE, Budget(5), Machine(artificial_ms, slowdown=factor)) for factor in (1.0, 1.5)
    )
    assert slower.expected(members)["speedup"] == pytest.approx(steady.expected(members)["speedup"])
    assert slower.admits(members).tolist() == steady.admits(members).tolist()


def test_what_was_timed_is_enough_for_another_worker():
    machines = Machine(artificial_ms), Machine(artificial_ms)
    first, other = (PredictedBudget(LANDSCAPE, Budget(5), one.shape_costs, one.measure) for one in machines)
    rows = first.time()
    first.fit(rows)
    other.fit(json.loads(json.dumps(rows)))
    members = list(LANDSCAPE)
    assert machines[1].timed == []
    assert other.expected(members)["latency_ms"].tolist() == first.expected(members)["latency_ms"].tolist()
    assert other.admits(members).tolist() == first.admits(members).tolist()


def test_shapes_that_differ_in_teacher_layers_alone_are_timed_once():
    few = {"num_hidden_layers": [1, 2], "teacher_layers": list(range(1, 9))}
    space = SearchSpace.from_dict(LANDSCAPE.as_dict() | few)
    machine = Machine(artificial_ms)
    predicted = predicted_for(space, Budget(6), machine)
    shapes = [str(Architecture(**one.as_dict() | {"teacher_layers": None})) for one in machine.timed]
    assert len(shapes) == len(set(shapes)) > SPREAD
    kept = [Architecture(2, 2, 48, 128, "gelu", teacher_layers=layers) for layers in ((1, 8), (3, 4))]
    assert len(set(predicted.expected(kept)["latency_ms"])) == 1


@pytest.mark.parametrize("name", ["parameters", "encoder_parameters", "size_mb", "flops"])
def test_a_limit_of_the_shape_is_exact_and_nothing_is_timed(name):
    members, machine = list(LANDSCAPE), Machine(artificial_ms)
    costs = machine.shape_costs(members)[name]
    limit = float(np.sort(costs)[len(costs) // 3])
    predicted = predicted_for(LANDSCAPE, Budget(**{name: limit}), machine)
    assert machine.rounds == []
    assert predicted.admits(members).tolist() == (costs <= limit).tolist()


def test_shapes_that_cost_too_much_are_not_timed_for_latency():
    members, machine = list(LANDSCAPE), Machine(artificial_ms)
    costs = machine.shape_costs(members)["parameters"]
    budget = Budget(4, parameters=float(np.median(costs)))
    predicted = predicted_for(LANDSCAPE, budget, machine)
    assert machine.shape_costs(machine.timed)["parameters"].max() <= budget.parameters
    assert not predicted.admits(members)[costs > budget.parameters].any()
    assert predicted.admits(members).any()


def test_memory_is_not_predicted():
    machine = Machine(artificial_ms)
    assert predicted_for(LANDSCAPE, Budget(memory_mb=1e-6), machine).admits(list(LANDSCAPE)).all()
    assert machine.rounds == []


def test_without_a_limit_all_are_admitted():
    predicted = predicted_for(LANDSCAPE, Budget(), Machine(artificial_ms))
    assert predicted.admits(list(LANDSCAPE)).all()
    assert predicted.admits([]).tolist() == []


def test_a_space_of_one_shape_is_not_regressed():
    space = SearchSpace.from_dict({name: [value] for name, value in zip(CHOICES, (2, 2, 24, 32, "gelu"), strict=True)})
    assert predicted_for(space, Budget(2), Machine(artificial_ms)).admits(list(space)).all()


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(1000), r"expected to have [0-9.]+x; allow smaller shapes in the space, or a smaller speedup\.$"),
        (
            Budget(latency_ms=0.01),
            r"expected to have [0-9.]+ ms; allow smaller shapes in the space, or a larger latency_budget\.$",
        ),
        (
            Budget(parameters=100),
            r"to have [0-9.]+M parameters; allow smaller shapes in the space, or a larger max_parameters\.$",
        ),
        (
            Budget(size_mb=1e-3, flops=1000),
            r"to have [0-9.]+ MB, [0-9.]+ GFLOP; .* or a larger max_size_mb and a larger max_flops\.$",
        ),
    ],
)
def test_where_no_shape_can_meet_the_budget_one_line_says_how_near_one_comes(budget, said):
    with pytest.raises(ValueError, match=said) as caught:
        predicted_for(LANDSCAPE, budget, Machine(artificial_ms))
    message = str(caught.value)
    assert message.startswith(
        f"no architecture of the space meets the budget ({budget}); the nearest, 1x24 heads 2 ffn 32 "
    )
    assert "\n" not in message
