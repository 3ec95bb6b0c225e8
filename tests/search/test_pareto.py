"""Searches of the Pareto front, and what the report says of it."""

import json

import numpy as np
import optuna
import pytest
import torch
from records import LANDSCAPE
from test_controller import ask
from tiny_search import tiny_search

from kdnas_hf import SearchArguments
from kdnas_hf.search import make_controller
from kdnas_hf.search.controllers import PARETO_CONTROLLERS, architecture_of


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
        for trial in ask(study, per_episode, LANDSCAPE):
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
    "controller", ["bayesian", *(pytest.param(one, marks=pytest.mark.long) for one in PARETO_CONTROLLERS[1:-1])]
)
def test_a_search_of_the_front_resumes_and_reports_it(tmp_path, controller):
    settings = {"objective": "pareto", "candidates_per_episode": 4, "controller": controller}
    tiny_search(tmp_path, num_episodes=2, **settings).run()
    study = optuna.load_study(study_name="kdnas", storage=f"sqlite:///{tmp_path / 'study.db'}")
    lines = [json.loads(line) for line in (tmp_path / "architectures.jsonl").read_text().splitlines()]
    assert [trial.values for trial in study.trials] == [
        pytest.approx([line["quality"], 1 / line["speedup"]]) for line in lines
    ]
    assert len({json.dumps(line["architecture"]) for line in lines}) == 8
    # the lines alone bring everything back
    (tmp_path / "study.db").unlink()
    again = tiny_search(tmp_path, num_episodes=2, **settings).run()
    assert [json.loads(one.to_json()) for one in again.trials] == lines
    reopened = optuna.load_study(study_name="kdnas", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [trial.values for trial in reopened.trials] == [trial.values for trial in study.trials]
    assert "the Pareto front of quality (1 - loss) and latency" in (tmp_path / "report.md").read_text()


@pytest.mark.long
def test_workers_search_the_front_as_one_search_does(tmp_path):
    settings = {"objective": "pareto", "controller": "bayesian", "num_episodes": 2}
    alone = tiny_search(tmp_path / "alone", **settings).run().trials
    shared = tiny_search(tmp_path / "worker", storage=f"journal:{tmp_path}/study.log", **settings).run().trials
    assert [(one.architecture, one.loss) for one in shared] == [(one.architecture, one.loss) for one in alone]


def test_learning_curves_of_two_objectives_are_kept(tmp_path):
    result = tiny_search(tmp_path, num_episodes=1, objective="pareto", controller="bayesian").run()
    assert [one.number for one in result.trials] == [0, 1, 2]
    for one in result.trials:
        assert one.readings[max(one.readings)] == one.quality
        assert len(one.readings) >= 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": "both"}, "objective='both' is unknown. Choose from reward, pareto"),
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
