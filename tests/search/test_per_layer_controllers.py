"""Controllers on a space of millions, which nobody enumerates."""

import math

import optuna
import pytest
from test_controller import SEARCHING, ask, chosen

from kdnas_hf.search import Architecture, EpsilonSchedule, SearchSpace, make_controller
from kdnas_hf.search.controllers import architecture_of
from kdnas_hf.search.controllers.bayesian import ArchitectureFeatures

pytestmark = pytest.mark.long  # depends on no line of transformers

SPACE = SearchSpace.from_dict(
    {
        "per_layer": True,
        "num_hidden_layers": [2, 3, 4, 5, 6],
        "num_attention_heads": [2, 3, 4],
        "hidden_size": [24, 36, 48],
        "intermediate_size": [32, 64, 128],
        "hidden_act": ["gelu", "relu"],
        "embedding_size": [None, 12],
    }
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    monkeypatch.setattr("kdnas_hf.search.space.POOL_SIZE", 400)


def reward_of(architecture):
    """More is worth more, at a price; late layers gain from neurons, early ones hardly; relu does harm late."""
    layers = architecture.num_hidden_layers
    inner, activations = architecture.per_layer("intermediate_size"), architecture.per_layer("hidden_act")
    depths = [(place + 1) / layers for place in range(layers)]
    quality = sum(depth * math.log(neurons / 16) for depth, neurons in zip(depths, inner, strict=True)) / layers
    quality -= sum(depth for depth, name in zip(depths, activations, strict=True) if name == "relu") / (2 * layers)
    quality += 0.3 * math.log(architecture.word_embedding_size * layers)
    return quality - architecture.encoder_parameters / 40_000 - abs(architecture.hidden_size - 36) / 24


def play(name, trials, seed=0, per_episode=6, study=None):
    sampler = make_controller(name, SPACE, per_episode, seed=seed, epsilon=EpsilonSchedule(1.0, 0.4))
    study = study or optuna.create_study(sampler=sampler, direction="maximize")
    study.sampler = sampler
    while len(study.get_trials(deepcopy=False)) < trials:
        asked = ask(study, per_episode, SPACE)
        for trial in asked:
            study.tell(trial, reward_of(architecture_of(study.get_trials(deepcopy=False)[trial.number])))
    return study


def test_the_space_is_too_large_to_enumerate():
    assert SPACE.size > 10_000_000
    assert not SPACE.is_enumerable


@pytest.mark.parametrize("name", SEARCHING)
def test_candidates_are_members_none_twice_and_the_same_again_when_resumed(name):
    whole = chosen(play(name, 6, seed=3, per_episode=3))
    assert all(architecture in SPACE for architecture in whole)
    assert len(set(whole)) == 6
    assert any(not architecture.is_homogeneous for architecture in whole)
    cut = play(name, 3, seed=3, per_episode=3)
    assert chosen(play(name, 6, seed=3, per_episode=3, study=cut)) == whole  # a new sampler, as in a new process


@pytest.mark.parametrize("name", ["bayesian", "lstm"])
def test_our_controllers_beat_chance_with_as_many_evaluations(name):
    found = {"random": [], name: []}
    for seed in range(2):
        for controller, values in found.items():
            values.append(play(controller, 24, seed=seed).best_value)
    assert sum(found[name]) > sum(found["random"])


def test_features_are_the_mean_of_the_layers_and_how_the_halves_differ():
    narrow = SPACE.as_dict() | {"num_attention_heads": [2], "hidden_size": [24], "hidden_act": ["gelu"]}
    space = SearchSpace.from_dict(narrow | {"embedding_size": [None]})
    shapes = [Architecture(2, 2, 24, (32, 128)), Architecture(3, 2, 24, (128, 64, 32)), Architecture(6, 2, 24, 64)]
    depth, mean, change, _ = ArchitectureFeatures(space)(shapes).T
    assert depth == pytest.approx([0, math.log(1.5) / math.log(3), 1])
    assert mean == pytest.approx([0.5, 0.5, 0.5])
    assert change == pytest.approx([1, -1, 0])
    assert ArchitectureFeatures(space)([]).shape == (0, 4)
