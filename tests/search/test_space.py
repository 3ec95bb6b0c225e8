"""The search space: choices, constraints, size and membership."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdnas_hf import KDNASModel
from kdnas_hf.search import Architecture, SearchSpace

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


def test_quickstart_space_loads():
    assert len(SearchSpace.load("quickstart")) > 100


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
        ({"hidden_act": ["gleu"]}, "Did you mean 'gelu'"),
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
    with pytest.raises(ValueError, match="neither a preset \\(kdnas, quickstart\\)"):
        SearchSpace.load("huge")
    path = tmp_path / "space.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="must map choices to lists"):
        SearchSpace.load(str(path))
