"""The search space: choices, constraints, size and membership."""

import json
from collections import Counter
from itertools import combinations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdnas_hf import KDNASModel
from kdnas_hf.search import SearchSpace
from kdnas_hf.students import Architecture
from kdnas_hf.students.architecture import CHOICES

TINY = {
    "num_hidden_layers": [1, 2],
    "num_attention_heads": [2, 3],
    "hidden_size": [8, 12],
    "intermediate_size": [16],
    "hidden_act": ["gelu", "relu"],
}


def test_members_are_the_combinations_whose_heads_divide_the_hidden_size():
    space = SearchSpace.from_dict(TINY)
    assert len(space) == 2 * (1 + 2) * 1 * 2  # 8: two heads only; 12: two or three
    assert len(set(space)) == len(space)
    assert Architecture(1, 3, 12, 16, "gelu") in space
    assert Architecture(1, 3, 8, 16, "gelu") not in space
    assert Architecture(3, 2, 8, 16, "gelu") not in space


def test_published_space_has_the_published_choices():
    space = SearchSpace.load("kdnas")
    assert space.num_hidden_layers == (3, 4, 5, 6, 10, 12)
    assert space.num_attention_heads == (2, 3, 4, 6, 12)
    assert space.intermediate_size == (384, 512, 576, 768, 1024, 1536, 2048, 3072)
    assert space.hidden_act == ("gelu", "relu", "silu")
    assert min(space.hidden_size) == 192
    assert max(space.hidden_size) == 768
    assert all(a.hidden_size % a.num_attention_heads == 0 for a in space)


def test_the_space_of_small_shapes_loads():
    assert len(SearchSpace.load("small")) > 100


def test_bounds_limit_the_parameters():
    everything = SearchSpace.from_dict(TINY)
    sizes = sorted({a.encoder_parameters for a in everything})
    bounded = SearchSpace.from_dict({**TINY, "min_encoder_parameters": sizes[1], "max_encoder_parameters": sizes[2]})
    assert {a.encoder_parameters for a in bounded} == set(sizes[1:3])


@given(st.sampled_from(list(SearchSpace.from_dict(TINY))))
def test_encoder_parameters_are_those_of_the_model(architecture):
    model = KDNASModel(architecture.to_config(vocab_size=10))
    assert architecture.encoder_parameters == sum(p.numel() for p in model.encoder.parameters())


def test_architecture_becomes_a_configuration():
    config = Architecture(2, 3, 12, 16, "relu").to_config(vocab_size=10)
    assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (2, 3, 12)
    assert (config.intermediate_size, config.hidden_act, config.vocab_size) == (16, "relu", 10)


def test_space_from_a_yaml_file(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("num_hidden_layers: [1]\nnum_attention_heads: [2]\nhidden_size: [8]\nintermediate_size: [16, 16]\n")
    assert list(SearchSpace.load(str(path))) == [Architecture(1, 2, 8, 16, "gelu")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": [5]}, r"no num_attention_heads of \[5\] divides a hidden_size of \[8, 12\]"),
        ({"hidden_act": ["gleu"]}, "did you mean 'gelu'"),
        ({"hidden_size": []}, "hidden_size has no choices"),
        ({"hidden_size": 8}, r"hidden_size=8 must be a list of choices; write \[8\]"),
        ({"num_hidden_layers": [0]}, "positive integers"),
        ({"num_hidden_layers": ["two"]}, "positive integers"),
        ({"max_encoder_parameters": 10}, "the bounds ask for 0 to 10"),
        ({"max_encoder_parameters": -1}, "must be a positive integer"),
        ({"hiden_size": [8]}, "did you mean 'hidden_size'"),
    ],
)
def test_impossible_spaces_are_refused_with_the_reason(change, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace.from_dict({**TINY, **change})


def test_missing_choices_and_missing_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no choices for hidden_size"):
        SearchSpace.from_dict({k: v for k, v in TINY.items() if k != "hidden_size"})
    with pytest.raises(ValueError, match="neither a preset \\(kdnas, layers, per_layer, quickstart, small\\)"):
        SearchSpace.load("huge")
    path = tmp_path / "space.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="must map choices to lists"):
        SearchSpace.load(str(path))


# ---- layers that differ, and sizes of word embeddings ----

MIXED = TINY | {
    "per_layer": True,
    "hidden_size": [8, 12],
    "intermediate_size": [16, 24],
    "hidden_act": ["gelu", "relu"],
    "embedding_size": [None, 4, 8],
}
HUGE = MIXED | {"num_hidden_layers": [4, 8, 12], "intermediate_size": [8, 16, 24, 32]}


def test_an_architecture_is_stored_in_one_way():
    one = Architecture(2, (2, 2), 8, [16, 16], ["gelu", "gelu"], embedding_size=8)
    assert one == Architecture(2, 2, 8, 16, "gelu")
    assert hash(one) == hash(Architecture(2, 2, 8, 16, "gelu"))
    assert Architecture(2, 2, 8, [16, 24]) != Architecture(2, 2, 8, [24, 16])
    with pytest.raises(ValueError, match=r"intermediate_size=\[16, 24\] has 2 values for num_hidden_layers=3"):
        Architecture(3, 2, 8, [16, 24])


def test_an_architecture_is_shown_in_one_line():
    one = Architecture(4, (4, 4, 6, 6), 288, (384, 768, 768, 384), "gelu", embedding_size=128)
    assert str(one) == "4x288 heads 4,4,6,6 ffn 384,768,768,384 gelu emb 128"
    assert str(Architecture(2, 2, 8, 16, ("gelu", "relu"))) == "2x8 heads 2 ffn 16 gelu,relu"


@pytest.mark.parametrize("values", [TINY, MIXED])
def test_counting_is_that_of_going_through(values):
    for bounds in ({}, {"min_encoder_parameters": 900}, {"max_encoder_parameters": 1100}):
        space = SearchSpace.from_dict(values | bounds)
        members = list(space)
        assert space.size == len(members) == len(set(members))
        assert all(member in space for member in members)
        sizes = [member.encoder_parameters for member in members]
        assert space.parameter_range == (min(sizes), max(sizes))


def test_embedding_sizes_are_none_or_smaller_than_the_states():
    found = {(one.hidden_size, one.embedding_size) for one in SearchSpace.from_dict(MIXED)}
    assert found == {(8, None), (8, 4), (12, None), (12, 4), (12, 8)}


def test_a_space_without_per_layer_has_no_architecture_whose_layers_differ():
    member = Architecture(2, 2, 8, 16, ("gelu", "relu"))
    assert member in SearchSpace.from_dict(MIXED)
    assert member not in SearchSpace.from_dict(MIXED | {"per_layer": False})


@pytest.mark.parametrize("values", [TINY, TINY | {"embedding_size": [4, 8]}, MIXED, HUGE])
def test_an_architecture_is_written_and_read_as_parameters_and_as_json(values):
    space = SearchSpace.from_dict(values)
    for one in space.sample(Random(0), 50):
        params = space.encode(one)
        assert list(params) == list(space.choices)
        assert all(params[name] in options for name, options in space.choices.items())
        assert Architecture.from_params(params) == one
        assert Architecture(**json.loads(json.dumps(one.as_dict()))) == one


def test_parameters_of_a_space_whose_layers_are_alike_are_its_fields():
    space = SearchSpace.from_dict(TINY)
    assert set(space.choices) == set(CHOICES)
    assert all(space.encode(one) == one.as_dict() for one in space)
    assert space.as_dict() == TINY


def test_choices_of_layers_beyond_the_depth_make_no_other_architecture():
    space = SearchSpace.from_dict(MIXED)
    params = space.encode(Architecture(1, 2, 8, 24, "relu"))
    assert params["intermediate_size_2"] == 24
    assert Architecture.from_params(params | {"intermediate_size_2": 16}) == Architecture(1, 2, 8, 24, "relu")


def test_a_space_of_millions_is_drawn_from_but_not_gone_through():
    space = SearchSpace.from_dict(HUGE | {"min_encoder_parameters": 5000})
    assert space.size > 10**12
    assert not space.is_enumerable
    with pytest.raises(ValueError, match="too many to go through"):
        list(space)
    drawn = space.sample(Random(0), 500)
    assert len(set(drawn)) == 500
    assert all(one in space for one in drawn)
    assert drawn == space.sample(Random(0), 500)
    # neither the deepest nor those of medium size are all that is drawn
    depths = [one.num_hidden_layers for one in drawn]
    assert min(depths.count(depth) for depth in (8, 12)) > 100
    assert {one.embedding_size for one in drawn} == {None, 4, 8}
    low, high = space.parameter_range
    assert min(one.encoder_parameters for one in drawn) < low + 0.1 * (high - low)
    assert max(one.encoder_parameters for one in drawn) > high - 0.2 * (high - low)


def test_draws_of_a_depth_and_a_size_are_equally_likely():
    space = SearchSpace.from_dict(
        TINY | {"per_layer": True, "num_hidden_layers": [2], "hidden_size": [12], "hidden_act": ["gelu"]}
    )
    counts = Counter(space._draw(Random(seed)) for seed in range(400))
    assert len(counts) == space.size == 4
    assert min(counts.values()) > 60


@pytest.mark.parametrize("values", [TINY, MIXED, HUGE])
def test_neighbours_differ_in_one_choice(values):
    space = SearchSpace.from_dict(values)
    random = Random(1)
    for one in space.sample(random, 20):
        found = space.neighbours(one, random, 10)
        assert found
        assert len(set(found)) == len(found)
        for other in found:
            assert other in space
            assert other != one
            changed = [name for name in ("num_hidden_layers", "hidden_size", "embedding_size")
                       if getattr(other, name) != getattr(one, name)]  # fmt: skip
            if not changed:
                pairs = [pair for name in ("num_attention_heads", "intermediate_size", "hidden_act")
                         for pair in zip(one.per_layer(name), other.per_layer(name), strict=True)]  # fmt: skip
                differing = sum(a != b for a, b in pairs)
                assert differing == (1 if space.per_layer else one.num_hidden_layers)


def test_a_pool_is_the_whole_space_or_a_sample_and_the_neighbours_of_the_leaders():
    small, huge = SearchSpace.from_dict(MIXED), SearchSpace.from_dict(HUGE)
    assert small.pool(Random(0)) == small.architectures
    leader = huge.sample(Random(0), 1)[0]
    without, around = huge.pool(Random(1)), huge.pool(Random(1), [leader])
    assert around[: len(without)] == without
    assert 20 < len(around) - len(without) <= 50
    assert len(set(around)) == len(around)


@given(st.sampled_from(SearchSpace.from_dict(MIXED).sample(Random(2), 40)))
def test_encoder_parameters_are_those_of_a_model_whose_layers_differ(architecture):
    model = KDNASModel(architecture.to_config(vocab_size=10))
    assert architecture.encoder_parameters == sum(p.numel() for p in model.encoder.parameters())
    assert model.config.word_embedding_size == architecture.word_embedding_size


def test_the_preset_whose_layers_differ_loads():
    space = SearchSpace.load("per_layer")
    assert space.size > 1_000_000
    assert SearchSpace.from_dict(space.as_dict()) == space


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding_size": 128}, r"embedding_size=128 must be a list of choices; write \[128\]"),
        ({"embedding_size": [0]}, "positive integers, or null"),
        ({"embedding_size": [16]}, r"every embedding_size of \[16\] is larger than each hidden_size"),
        ({"per_layer": "yes"}, "per_layer='yes' must be true or false"),
        ({"max_encoder_parameters": 10}, "the bounds ask for 0 to 10"),
    ],
)
def test_impossible_spaces_of_layers_that_differ_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace.from_dict({**MIXED, **change})


# ---- which of the teacher's layers are kept ----

KEEPING = TINY | {"num_hidden_layers": [1, 2, 3], "hidden_size": [8], "teacher_layers": [2, 3, 5, 6]}
KEEPING_MIXED = MIXED | {"hidden_size": [8], "num_attention_heads": [2], "teacher_layers": [1, 4, 6]}
DEEP = TINY | {"num_hidden_layers": [3, 6, 12], "hidden_size": [12], "teacher_layers": list(range(1, 25))}


@pytest.mark.parametrize("values", [KEEPING, KEEPING_MIXED])
def test_every_member_keeps_as_many_teacher_layers_as_it_has_layers(values):
    space = SearchSpace.from_dict(values)
    members = list(space)
    assert space.size == len(members) == len(set(members))
    assert all(member in space for member in members)
    for depth in space.num_hidden_layers:
        kept = {one.teacher_layers for one in members if one.num_hidden_layers == depth}
        assert kept == set(combinations(sorted(values["teacher_layers"]), depth))
    sizes = [one.encoder_parameters for one in members]
    assert space.parameter_range == (min(sizes), max(sizes))


def test_members_of_other_spaces_are_told_apart_by_the_layers_that_they_keep():
    space, plain = SearchSpace.from_dict(KEEPING), SearchSpace.from_dict(KEEPING | {"teacher_layers": None})
    one = Architecture(2, 2, 8, 16, "gelu", teacher_layers=(2, 6))
    assert one in space
    assert one not in plain
    assert Architecture(2, 2, 8, 16, "gelu") not in space
    assert Architecture(2, 2, 8, 16, "gelu", teacher_layers=(1, 6)) not in space
    assert SearchSpace.from_dict(space.as_dict()) == space
    assert "teacher_layers" not in plain.as_dict()


def test_an_architecture_shows_the_layers_that_it_keeps_and_costs_the_same():
    one = Architecture(2, 2, 8, 16, "gelu", teacher_layers=[1, 6])
    assert str(one) == "2x8 heads 2 ffn 16 gelu layers 1,6"
    assert one.as_dict()["teacher_layers"] == [1, 6]
    assert "teacher_layers" not in Architecture(2, 2, 8, 16, "gelu").as_dict()
    assert one != Architecture(2, 2, 8, 16, "gelu", teacher_layers=(1, 5))
    assert one.encoder_parameters == Architecture(2, 2, 8, 16, "gelu").encoder_parameters
    assert one.is_homogeneous


@pytest.mark.parametrize("layers", [(1,), (1, 2, 3), (6, 1), (2, 2), (0, 1), ("a", "b")])
def test_layers_that_do_not_ascend_one_for_each_are_refused(layers):
    with pytest.raises(ValueError, match=r"teacher_layers=.* must name 2 different layers of the teacher"):
        Architecture(2, 2, 8, 16, "gelu", teacher_layers=layers)


@pytest.mark.parametrize("values", [KEEPING, KEEPING_MIXED, DEEP])
def test_kept_layers_are_written_and_read_as_parameters(values):
    space = SearchSpace.from_dict(values)
    for one in space.sample(Random(0), 50):
        params = space.encode(one)
        assert list(params) == list(space.choices)
        assert all(params[name] in options for name, options in space.choices.items())
        deepest, depth = max(space.num_hidden_layers), one.num_hidden_layers
        named = [params[f"teacher_layer_{layer}"] for layer in range(1, deepest + 1)]
        assert tuple(named[:depth]) == one.teacher_layers
        assert set(named[depth:]) <= {named[depth - 1]}
        assert Architecture.from_params(params) == space.decode(params) == one


@given(st.lists(st.sampled_from([2, 3, 5, 6]), min_size=3, max_size=3))
def test_draws_that_do_not_ascend_become_the_nearest_that_do(wanted):
    space = SearchSpace.from_dict(KEEPING)
    params = space.encode(Architecture(3, 2, 8, 16, "gelu", teacher_layers=(2, 3, 5)))
    params |= {f"teacher_layer_{place}": layer for place, layer in enumerate(wanted, start=1)}
    one = space.decode(params)
    assert one in space

    def distance(kept):
        return sum(abs(a - b) for a, b in zip(kept, sorted(wanted), strict=True))

    assert distance(one.teacher_layers) == min(map(distance, combinations([2, 3, 5, 6], 3)))
    if len(set(wanted)) == 3:
        assert one.teacher_layers == tuple(sorted(wanted))


@pytest.mark.parametrize("values", [KEEPING, DEEP])
def test_neighbours_keep_all_teacher_layers_but_one_that_moves_a_little(values):
    space, random = SearchSpace.from_dict(values), Random(1)
    moved = 0
    for one in space.sample(random, 20):
        found = space.neighbours(one, random, 20)
        assert len(set(found)) == len(found) > 0
        for other in found:
            assert other in space
            lost, won = (
                set(a) - set(b)
                for a, b in ((one.teacher_layers, other.teacher_layers), (other.teacher_layers, one.teacher_layers))
            )
            if other.num_hidden_layers != one.num_hidden_layers:
                assert not (lost and won)  # what can be kept is
                continue
            shape = [getattr(one, name) != getattr(other, name) for name in CHOICES]
            assert (len(lost), len(won)) == ((0, 0) if any(shape) else (1, 1))
            if lost:
                moved += 1
                unused = sorted(
                    set(space.teacher_layers) - set(one.teacher_layers), key=lambda n: (abs(n - max(lost)), n)
                )
                assert max(won) in unused[:2]
    assert moved > 20


def test_all_depths_of_a_space_of_kept_layers_are_drawn_alike():
    space = SearchSpace.from_dict(DEEP)
    assert space.size > 10**6
    assert not space.is_enumerable
    drawn = space.sample(Random(0), 300)
    assert len(set(drawn)) == 300
    assert all(one in space for one in drawn)
    depths = Counter(one.num_hidden_layers for one in drawn)
    assert min(depths[depth] for depth in (3, 6, 12)) > 70
    assert {layer for one in drawn for layer in one.teacher_layers} == set(range(1, 25))


def test_the_presets_of_kept_layers_have_every_subset():
    assert SearchSpace.load("quickstart").size == 8 * (66 + 220 + 495)
    assert SearchSpace.load("layers").size == 8**2 * 66 + 8**3 * 220 + 8**4 * 495


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_layers": 6}, r"teacher_layers=6 must be a list of choices; write \[6\]"),
        ({"teacher_layers": [0, 1, 2]}, "teacher_layers has the choice 0; choices are positive integers"),
        ({"teacher_layers": []}, "teacher_layers has no choices"),
        ({"teacher_layers": [1, 2]}, r"teacher_layers=\[1, 2\] are too few for num_hidden_layers=3; name as many"),
    ],
)
def test_impossible_layers_to_keep_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace.from_dict({**KEEPING, **change})
