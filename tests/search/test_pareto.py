"""Searches of the Pareto front, and what the report says of it."""

import json
from dataclasses import replace

import numpy as np
import optuna
import pytest
import torch
from records import LANDSCAPE, SPACE, record
from tiny_search import tiny_search

from kdnas_hf import SearchArguments
from kdnas_hf.search import front_uncertainty, make_controller, pareto_front
from kdnas_hf.search.controllers import PARETO_CONTROLLERS, architecture_of
from kdnas_hf.search.controllers.bayesian import GaussianProcess
from kdnas_hf.search.importance import importances


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)


def values_of(architecture):
    """Quality and latency; heads and activation cost nothing, but more heads and relu are better."""
    size = architecture.num_hidden_layers * architecture.hidden_size / 288
    quality = size**0.3 - 0.1 * (architecture.num_attention_heads == 2) - 0.1 * (architecture.hidden_act != "relu")
    return quality, 0.05 + size + architecture.intermediate_size / 2000


def play(name, trials, seed=0, per_episode=5):
    sampler = make_controller(name, LANDSCAPE, per_episode, seed=seed)
    study = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])
    while len(study.get_trials(deepcopy=False)) < trials:
        asked = [study.ask() for _ in range(per_episode)]
        for trial in asked:
            for choice, values in LANDSCAPE.choices.items():
                trial.suggest_categorical(choice, values)
        for trial in asked:
            architecture = architecture_of(study.get_trials(deepcopy=False)[trial.number])
            study.tell(trial, values_of(architecture))
    return [trial.values for trial in study.get_trials(deepcopy=False)]


def dominated(values, slowest=1.2):
    """The area between latency, on a logarithmic scale, and quality that what was found dominates."""
    area, quality = 0.0, 0.0
    found = sorted(values, key=lambda one: one[1])
    for (q, start), end in zip(found, [one[1] for one in found[1:]] + [slowest], strict=True):
        quality = max(quality, q)
        area += quality * np.log(max(end, start) / start)
    return area


def test_the_front_is_found_with_fewer_candidates_than_by_chance():
    found = {name: np.mean([dominated(play(name, 30, seed=s)) for s in range(3)]) for name in ("bayesian", "random")}
    whole = dominated([values_of(architecture) for architecture in LANDSCAPE])
    assert found["bayesian"] > found["random"] + 0.5 * (whole - found["random"])


@pytest.mark.parametrize(
    "controller", ["bayesian", *(pytest.param(one, marks=pytest.mark.long) for one in PARETO_CONTROLLERS[1:])]
)
def test_a_search_of_the_front_resumes_and_reports_it(tmp_path, controller):
    settings = {"objective": "pareto", "candidates_per_episode": 4, "controller": controller}
    tiny_search(tmp_path, num_episodes=2, **settings).run()
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'study.db'}")
    lines = [json.loads(line) for line in (tmp_path / "architectures.jsonl").read_text().splitlines()]
    assert [trial.values for trial in study.trials] == [
        pytest.approx([1 - line["loss"], 1 / line["speedup"]]) for line in lines
    ]
    assert len({json.dumps(line["architecture"]) for line in lines}) == 8
    # the ledger alone brings everything back
    (tmp_path / "study.db").unlink()
    again = tiny_search(tmp_path, num_episodes=2, **settings).run()
    assert [json.loads(one.to_json()) for one in again.records] == lines
    reopened = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [trial.values for trial in reopened.trials] == [trial.values for trial in study.trials]
    assert "the Pareto front of quality (1 - loss) and latency" in (tmp_path / "report.md").read_text()


@pytest.mark.long
def test_workers_search_the_front_as_one_search_does(tmp_path):
    settings = {"objective": "pareto", "controller": "bayesian", "num_episodes": 2}
    alone = tiny_search(tmp_path / "alone", **settings).run().records
    shared = tiny_search(tmp_path / "worker", storage=f"journal:{tmp_path}/study.log", **settings).run().records
    assert [(one.architecture, one.loss) for one in shared] == [(one.architecture, one.loss) for one in alone]


def test_learning_curves_of_two_objectives_are_kept(tmp_path):
    result = tiny_search(tmp_path, num_episodes=1, objective="pareto", controller="bayesian").run()
    assert result.curves.keys() == {0, 1, 2}
    for one in result.records:
        curve = result.curves[one.number]
        assert curve[max(curve)] == one.r2
        assert len(curve) >= 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": "both"}, "objective='both' is unknown; choose from reward, pareto"),
        (
            {"objective": "pareto", "controller": "lstm"},
            "controller='lstm' is after one reward; .* choose from bayesian",
        ),
        ({"objective": "pareto", "halving_rungs": [0.5]}, "halving_rungs compares rewards"),
    ],
)
def test_what_has_no_front_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SearchArguments(**values)


def of_the_space(count=12, noise=0.0, seed=0):
    random = np.random.default_rng(seed)
    found = []
    for number, architecture in enumerate(list(SPACE)[:count]):
        size = architecture.encoder_parameters
        quality = 0.05 * np.log(size) + 0.2 * (architecture.hidden_act == "relu") + noise * random.standard_normal()
        found.append(record(number, architecture, r2=float(quality), latency=size / 1000))
    return found


def test_what_is_far_ahead_is_certainly_on_the_front_and_what_is_far_behind_never():
    records = of_the_space()
    best, worst = replace(records[0], r2=0.9, latency_ms=0.1, speedup=400.0), replace(records[1], r2=0.0, speedup=0.1)
    found = front_uncertainty([best, worst, *records[2:]], SPACE, latency_repeats=15)
    assert found.chances[0] > 0.95
    assert found.chances[1] == 0.0


def test_neighbours_within_the_noise_share_the_front():
    records = [record(number, SPACE.architectures[number], r2=0.3, latency=10.0 + number / 100) for number in (0, 1)]
    assert [one.number for one in pareto_front(records)] == [0]
    found = front_uncertainty(records, SPACE, latency_repeats=15)
    assert found.r2_deviation is None  # two are too few
    assert found.chances[0] == pytest.approx(0.5, abs=0.1)
    assert found.chances[1] == pytest.approx(0.5, abs=0.1)


def test_the_noise_of_r2_is_what_the_space_does_not_explain():
    quiet = front_uncertainty(of_the_space(24), SPACE, 15).r2_deviation
    noisy = front_uncertainty(of_the_space(24, noise=0.05), SPACE, 15).r2_deviation
    assert quiet < 0.02 < noisy < 0.1


def test_errors_of_what_was_left_out_are_those_of_fits_without_it():
    random = np.random.default_rng(0)
    features = random.random((10, 2))
    values = features[:, 0] + 0.1 * random.standard_normal(10)
    values -= values.mean()  # a process of the others has another mean; here all have the same
    whole = GaussianProcess.fit(features, values, seed=0)
    for index, error in enumerate(whole.left_out_errors()):
        others = np.arange(10) != index
        one = GaussianProcess(whole.kernel, whole.noise, features[others], values[others] / whole.scale)
        one.mean, one.scale = 0.0, 1.0
        one.process.fit(one.features, one.values)
        assert error == pytest.approx(values[index] - one.predict(features[[index]])[0][0] * whole.scale, abs=1e-8)


def test_importance_is_that_of_the_choice_which_explains_the_figure():
    by_activation = [replace(one, reward=float(one.architecture.hidden_act == "relu")) for one in of_the_space(24)]
    shares = importances(SPACE, by_activation, "reward")
    assert next(iter(shares)) == "hidden_act"
    assert shares["hidden_act"] > 0.9
    assert sum(shares.values()) == pytest.approx(1.0)
    assert importances(SPACE, by_activation[:7], "reward") == {}
    assert importances(SPACE, [replace(one, reward=0.5) for one in by_activation], "reward") == {}
