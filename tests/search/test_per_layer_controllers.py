"""Controllers on a space of millions, which nobody enumerates."""

import math

import numpy as np
import optuna
import pytest
from playing import chosen, play

from kdnas_hf.search import EpsilonSchedule, SearchSpace, make_controller
from kdnas_hf.search.controllers import CONTROLLERS
from kdnas_hf.search.controllers.bayesian import ArchitectureFeatures
from kdnas_hf.students import Architecture

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


def search(name, trials, seed=0, per_episode=6, study=None, space=SPACE, tell=reward_of):
    sampler = make_controller(name, space, per_episode, seed=seed, epsilon=EpsilonSchedule(1.0, 0.4))
    return play(sampler, trials, tell, study)


def test_the_space_is_too_large_to_enumerate():
    assert SPACE.size > 10_000_000
    assert not SPACE.is_enumerable


@pytest.mark.parametrize("name", [name for name in CONTROLLERS if name not in ("depth", "hand")])
def test_candidates_are_members_none_twice_and_the_same_again_when_resumed(name):
    whole = chosen(search(name, 6, seed=3, per_episode=3))
    assert all(architecture in SPACE for architecture in whole)
    assert len(set(whole)) == 6
    assert any(not architecture.is_homogeneous for architecture in whole)
    cut = search(name, 3, seed=3, per_episode=3)
    assert chosen(search(name, 6, seed=3, per_episode=3, study=cut)) == whole  # a new sampler, as in a new process


@pytest.mark.parametrize("name", ["bayesian", "lstm"])
def test_our_controllers_beat_chance_with_as_many_evaluations(name):
    found = {"random": [], name: []}
    for seed in range(2):
        for controller, values in found.items():
            values.append(search(controller, 24, seed=seed).best_value)
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


def test_the_best_have_their_neighbours_looked_at():
    study = search("bayesian", 12, seed=1)
    sampler = study.sampler
    _, observed, _ = sampler.known(study, 12)
    best = max(observed, key=lambda one: one.values[0]).architecture
    plain, around = (set(sampler.available(study, 12, near)) for near in ((), observed))
    assert plain < around
    near = [
        one
        for one in around - plain
        if one.hidden_size == best.hidden_size and one.num_hidden_layers == best.num_hidden_layers
    ]
    assert len(near) > 10


# ---- layers of the teacher that are kept ----

KEEPING = SearchSpace.from_dict(
    {
        "num_hidden_layers": [2, 3, 4],
        "num_attention_heads": [4],
        "hidden_size": [48],
        "intermediate_size": [64, 128],
        "teacher_layers": list(range(1, 13)),
    }
)
DEEPER = SearchSpace.from_dict(KEEPING.as_dict() | {"num_hidden_layers": [4, 8], "teacher_layers": list(range(1, 25))})


def kept_reward(architecture):
    """Four layers that are spread over the teacher and end early are best."""
    kept = architecture.teacher_layers
    wanted = [2 + 8 * place / (len(kept) - 1) for place in range(len(kept))]
    off = sum(abs(a - b) for a, b in zip(kept, wanted, strict=True)) / len(kept)
    return 0.3 + 0.1 * len(kept) - 0.05 * off + 0.02 * (architecture.intermediate_size == 128)


@pytest.mark.parametrize("name", [name for name in CONTROLLERS if name not in ("depth", "hand", "gp")])
@pytest.mark.parametrize("space", [KEEPING, DEEPER], ids=["gone through", "drawn from"])
def test_candidates_keep_layers_of_the_teacher(name, space):
    study = search(name, 8, per_episode=4, space=space, tell=kept_reward)
    found = chosen(study)
    assert all(one in space for one in found)
    assert len(set(found)) == 8


def test_which_layers_are_kept_is_learnt():
    """Mean reward of what is proposed last."""
    found = {"random": 0.0, "bayesian": 0.0}
    for seed in range(3):
        for name in found:
            last = chosen(search(name, 30, seed=seed, space=KEEPING, tell=kept_reward))[24:]
            found[name] += sum(map(kept_reward, last)) / 18
    assert found["bayesian"] > found["random"] + 0.05


def test_features_of_kept_layers_are_four_of_them_at_even_spacing():
    space = SearchSpace.from_dict(KEEPING.as_dict() | {"num_hidden_layers": [1, 4], "intermediate_size": [64]})
    shapes = [Architecture(4, 4, 48, 64, teacher_layers=kept) for kept in ((1, 2, 11, 12), (5, 6, 7, 8))]
    shapes.append(Architecture(1, 4, 48, 64, teacher_layers=(6,)))
    depth, *kept, size = ArchitectureFeatures(space)(shapes).T
    assert depth == pytest.approx([1, 1, 0])
    places = 12 * np.array(kept).T
    assert places == pytest.approx(np.array([[1, 2, 11, 12], [5, 6, 7, 8], [6, 6, 6, 6]]))
    assert size == pytest.approx([1, 1, 0])
    (two,) = ArchitectureFeatures(KEEPING)([Architecture(2, 4, 48, 64, teacher_layers=(3, 12))])
    assert 12 * two[2:6] == pytest.approx([3, 6, 9, 12])
