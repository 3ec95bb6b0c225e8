"""Controllers that propose depths of the teacher's shape, or a list."""

import numpy as np
import pytest
from playing import chosen, play

from kdnas_hf.search import SearchSpace, make_controller
from kdnas_hf.search.controllers.rules_of_thumb import (
    depth_rule,
    evenly_spaced,
    load_hand_list,
    usual_shapes,
)
from kdnas_hf.students import Architecture

TEACHER = Architecture(12, 12, 384, 1536, "gelu")
LAYERS = SearchSpace.load("quickstart")
SMALL = SearchSpace.load("small")


def test_depths_of_the_teachers_shape_are_proposed_the_deepest_first_and_then_no_more():
    study = play(make_controller("depth", SMALL, 2, teacher=TEACHER), 9, lambda one: 0.5)
    assert chosen(study) == [Architecture(depth, 12, 384, 1024, "gelu") for depth in (4, 3, 2)]
    assert study.sampler.available(study, 3) == []


def test_kept_layers_are_evenly_spaced_and_end_at_the_last():
    assert [one.teacher_layers for one in depth_rule(LAYERS, TEACHER)] == [(3, 6, 9, 12), (4, 8, 12), (6, 12)]
    assert all(one.intermediate_size == 1536 for one in depth_rule(LAYERS, TEACHER))
    assert evenly_spaced(5, 12) == (2, 5, 7, 10, 12)
    assert evenly_spaced(1, 24) == (24,)
    for depth in range(1, 13):
        assert evenly_spaced(depth, 12)[-1] == 12
        assert len(set(evenly_spaced(depth, 12))) == depth
    early = SearchSpace.from_dict(LAYERS.as_dict() | {"teacher_layers": [1, 2, 3, 4, 7]})
    assert [one.teacher_layers for one in depth_rule(early, TEACHER)] == [(2, 3, 4, 7), (3, 4, 7), (4, 7)]


def test_what_the_space_does_not_have_is_the_nearest_by_ratio():
    space = SearchSpace.from_dict(
        {
            "num_hidden_layers": [2, 4],
            "num_attention_heads": [4, 5, 16],
            "hidden_size": [100, 300, 640],
            "intermediate_size": [512, 4096],
            "hidden_act": ["silu", "relu"],
            "embedding_size": [64, 256],
        }
    )
    # 300 is nearer to 384 than 640 is, and 16 heads do not divide it
    assert depth_rule(space, TEACHER)[0] == Architecture(4, 5, 300, 4096, "silu", embedding_size=256)
    relu = depth_rule(space, Architecture(24, 16, 640, 512, ("relu",) * 24))
    assert relu == [Architecture(depth, 16, 640, 512, "relu", embedding_size=256) for depth in (4, 2)]


def test_shapes_outside_the_bounds_are_no_rule_and_layers_may_differ():
    bounded = SearchSpace.from_dict(SMALL.as_dict() | {"max_encoder_parameters": 4_500_000})
    assert [one.num_hidden_layers for one in depth_rule(bounded, TEACHER)] == [3, 2]
    per_layer = SearchSpace.load("per_layer")
    assert depth_rule(per_layer, TEACHER) == depth_rule(SMALL, TEACHER)


HAND = """
- {num_hidden_layers: 2, num_attention_heads: 12, hidden_size: 384, intermediate_size: 768}
- num_hidden_layers: 3
  num_attention_heads: 4
  hidden_size: 240
  intermediate_size: 1024
  hidden_act: relu
"""


def test_a_list_is_proposed_in_its_order(tmp_path):
    path = tmp_path / "hand.yaml"
    path.write_text(HAND)
    hand = load_hand_list(path, SMALL)
    assert hand == [Architecture(2, 12, 384, 768), Architecture(3, 4, 240, 1024, "relu")]
    study = play(make_controller("hand", SMALL, 5, hand=[hand[1], hand[0], hand[1]]), 9, lambda one: 0.5)
    assert chosen(study) == [hand[1], hand[0]]


@pytest.mark.parametrize(
    ("text", "space", "message"),
    [
        ("[]", SMALL, r"hand.yaml must be a list of one or more architectures, mappings of num_hidden_layers, "),
        ("num_hidden_layers: 2", SMALL, "must be a list of one or more architectures"),
        ("[2x384]", SMALL, r"entry 1 \(2x384\): .*it has the fields num_hidden_layers, "),
        (HAND + "- {hiden_size: 8}", SMALL, r"entry 3 \({'hiden_size': 8}\): got an unexpected .* 'hiden_size'; "),
        (HAND + "- {hidden_size: 384}", SMALL, r"entry 3 .*missing 3 required positional arguments"),
        (HAND.replace("768", "769"), SMALL, r"entry 1 \(.*769}\): it is not in the search space; it has"),
        (HAND.replace("240", "[240]"), SMALL, r"entry 2 \("),
        (HAND, LAYERS, r"entry 1 .* it is not in the search space"),  # no layers to keep
        (
            HAND.replace("768}", "768, teacher_layers: [6, 1]}"),
            LAYERS,
            r"entry 1 .*teacher_layers=\[6, 1\] must name 2",
        ),
        ("- {", SMALL, "hand.yaml is not valid YAML: "),
    ],
)
def test_lists_of_what_is_no_architecture_of_the_space_are_refused_in_one_line(text, space, message, tmp_path):
    path = tmp_path / "hand.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_hand_list(path, space)
    assert "\n" not in str(error.value)


def test_a_list_may_name_the_layers_that_are_kept(tmp_path):
    path = tmp_path / "hand.yaml"
    path.write_text(HAND.splitlines()[1].replace("768}", "1024, teacher_layers: [1, 12]}"))
    (one,) = load_hand_list(path, LAYERS)
    assert one.teacher_layers == (1, 12)


def test_usual_shapes_keep_the_teachers_width_and_the_layers_of_the_default_the_deepest_first():
    usual = usual_shapes(LAYERS, TEACHER)
    kept = {4: (2, 5, 8, 11), 3: (3, 7, 11), 2: (4, 10)}
    wanted = [(depth, inner, kept[depth]) for depth in (4, 3, 2) for inner in (1536, 1024, 704, 512, 384)]
    assert [(one.num_hidden_layers, one.intermediate_size, one.teacher_layers) for one in usual] == wanted
    assert all(one in LAYERS for one in usual)
    assert {one.num_attention_heads for one in usual_shapes(SMALL, TEACHER)} == {12}


def test_the_default_controller_begins_with_the_first_usual_shape_that_is_admitted():
    sampler = make_controller("bayesian", LAYERS, 5, teacher=TEACHER)
    sampler.admits = lambda members: np.array([one.encoder_parameters <= 3_000_000 for one in members])
    study = play(sampler, 10, lambda one: 0.5)
    first = chosen(study)[0]
    assert (first.num_hidden_layers, first.intermediate_size, first.teacher_layers) == (3, 512, (3, 7, 11))
    assert len(set(chosen(study))) == 10
    assert sampler.admits(chosen(study)).all()
    sampler.admits = lambda members: np.array([one.intermediate_size < 384 for one in members], dtype=bool)
    other = make_controller("bayesian", LAYERS, 5, teacher=TEACHER)
    other.admits = sampler.admits
    assert sampler.admits(chosen(play(other, 5, lambda one: 0.5))).all()
