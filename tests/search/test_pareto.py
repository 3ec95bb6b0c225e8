"""Searches of the Pareto front."""

import json

import numpy as np
import optuna
import pytest
import torch
from records import LANDSCAPE
from tiny_search import tiny_search

from kdnas_hf import SearchArguments
from kdnas_hf.search import make_controller
from kdnas_hf.search.controllers import PARETO_CONTROLLERS, architecture_of
from kdnas_hf.search.controllers.bayesian import GaussianProcess


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
