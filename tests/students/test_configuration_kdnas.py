"""The configuration: what it accepts, what it refuses and how it says so, and what is equal to what."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from kdnas_hf.students import KDNASConfig, KDNASModel


def test_one_value_holds_for_every_layer():
    config = KDNASConfig(num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, hidden_act="relu")
    assert config.attention_heads_per_layer == (4, 4, 4)
    assert config.intermediate_sizes_per_layer == (64, 64, 64)
    assert config.activations_per_layer == ("relu", "relu", "relu")
    assert config.is_homogeneous


def test_lists_hold_one_value_per_layer():
    config = KDNASConfig(num_hidden_layers=2, num_attention_heads=[2, 6], intermediate_size=(64, 32))
    assert config.attention_heads_per_layer == (2, 6)
    assert config.intermediate_sizes_per_layer == (64, 32)
    assert not config.is_homogeneous


def test_equal_architectures_compare_equal():
    assert KDNASConfig(num_attention_heads=[6] * 6, hidden_act=["gelu"] * 6) == KDNASConfig()
    assert KDNASConfig(embedding_size=384) == KDNASConfig()
    assert KDNASConfig(embedding_size=384).num_attention_heads == 6


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 192},
        {"num_hidden_layers": 3},
        {"hidden_act": ["gelu"] * 5 + ["relu"]},
        {"embedding_size": 128},
        {"pad_token_id": 0},
        {"num_labels": 3},
    ],
)
def test_other_architectures_compare_unequal(change):
    assert KDNASConfig(**change) != KDNASConfig()
    assert KDNASConfig(**change) == KDNASConfig(**change)
    assert KDNASConfig() != "kdnas"


def test_embedding_size_factorises():
    assert not KDNASConfig().is_factorised
    assert KDNASConfig().word_embedding_size == 384
    assert KDNASConfig(embedding_size=128).is_factorised
    assert KDNASConfig(embedding_size=512).word_embedding_size == 512  # larger is allowed


@st.composite
def configurations(draw):
    layers = draw(st.integers(1, 4))
    heads = st.sampled_from([1, 2, 3, 4, 6, 8, 12])
    per_layer = {
        "num_attention_heads": heads,
        "intermediate_size": st.integers(1, 64),
        "hidden_act": st.sampled_from(["gelu", "relu", "silu", "gelu_new"]),
    }
    fields = {
        name: draw(choice | st.lists(choice, min_size=layers, max_size=layers)) for name, choice in per_layer.items()
    }
    return KDNASConfig(
        num_hidden_layers=layers,
        hidden_size=24,
        embedding_size=draw(st.none() | st.integers(1, 48)),
        vocab_size=draw(st.integers(4, 64)),
        pad_token_id=draw(st.integers(0, 3)),
        tie_word_embeddings=draw(st.booleans()),
        classifier_dropout=draw(st.none() | st.floats(0, 0.9)),
        num_labels=draw(st.integers(2, 4)),
        **fields,
    )


@given(configurations())
@settings(max_examples=50, deadline=None)
def test_json_round_trip_is_exact(config):
    assert KDNASConfig.from_dict(config.to_dict()) == config
    assert KDNASConfig.from_dict(json.loads(config.to_json_string())) == config
    assert config.is_homogeneous == (
        not any(isinstance(v, list) for v in (config.num_attention_heads, config.intermediate_size, config.hidden_act))
    )


def test_saved_configuration_loads_through_auto_config(tmp_path):
    config = KDNASConfig(num_hidden_layers=2, hidden_act=["gelu", "relu"], num_labels=5)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, KDNASConfig)
    assert loaded == config
    assert loaded.num_labels == 5


def test_every_head_is_in_the_auto_map():
    assert set(KDNASConfig().auto_map) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForMaskedLM",
        "AutoModelForQuestionAnswering",
        "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
    }
    kept = KDNASConfig(auto_map={"AutoModel": "someone/else--modeling_kdnas.KDNASModel"}).auto_map
    assert kept["AutoModel"].startswith("someone/else--")
    assert len(kept) == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"hidden_size": 300, "num_attention_heads": 8},
            r"hidden_size=300 is not divisible by num_attention_heads=8; choose from \{1, 2, 3, 4, 5, 6, 10,",
        ),
        ({"num_attention_heads": [6, 6, 6, 6, 6, 7]}, r"hidden_size=384 is not divisible by num_attention_heads=7"),
        ({"num_attention_heads": [6, 6]}, r"num_attention_heads=\[6, 6\] has 2 entries for num_hidden_layers=6"),
        ({"intermediate_size": []}, r"intermediate_size=\[\] has 0 entries for num_hidden_layers=6"),
        ({"intermediate_size": 0}, "intermediate_size=0 must be a positive integer, or a list of them"),
        ({"num_attention_heads": True}, "num_attention_heads=True must be a positive integer"),
        ({"hidden_act": "gleu"}, "hidden_act='gleu' is not an activation that transformers knows; did you mean 'gelu'"),
        ({"hidden_act": "GELU"}, "did you mean 'gelu'"),
        ({"hidden_act": 3}, "hidden_act=3 .* choose from .*'gelu'"),
        ({"hidden_size": 384.0}, r"hidden_size=384\.0 must be a positive integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 must be a positive integer"),
        ({"vocab_size": -1}, "vocab_size=-1 must be a positive integer"),
        ({"type_vocab_size": 0}, "type_vocab_size=0 must be a positive integer"),
        ({"embedding_size": 0}, "embedding_size=0 must be a positive integer, or None for hidden_size"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob=1\.0 is not a probability"),
        ({"attention_probs_dropout_prob": None}, "attention_probs_dropout_prob=None is not a probability"),
        ({"classifier_dropout": -0.1}, r"classifier_dropout=-0\.1 is not a probability"),
        ({"pad_token_id": None}, "pad_token_id=None is not a token of vocab_size=250002"),
        ({"pad_token_id": 9, "vocab_size": 9}, "pad_token_id=9 is not a token of vocab_size=9"),
        ({"max_position_embeddings": 2}, "max_position_embeddings=2 leaves no position: .* choose at least 3"),
    ],
)
def test_errors_name_field_value_and_remedy(fields, message):
    with pytest.raises(ValueError, match=message):
        KDNASConfig(**fields)


def test_fields_that_were_changed_are_checked_when_a_model_is_made():
    config = KDNASConfig(num_hidden_layers=2, num_attention_heads=[2, 4])
    config.num_hidden_layers = 3
    with torch.device("meta"), pytest.raises(ValueError, match=r"num_attention_heads=\[2, 4\] has 2 entries"):
        KDNASModel(config)


def test_padding_late_in_the_vocabulary_gets_an_early_position():
    shape = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    with pytest.raises(ValueError, match="position_padding_idx=1"):
        KDNASConfig(vocab_size=900, pad_token_id=800, **shape)
    config = KDNASConfig(vocab_size=900, pad_token_id=800, position_padding_idx=1, **shape)
    assert (config.first_position, config.max_tokens) == (2, 512)
    assert KDNASConfig().max_tokens == 512


def test_position_of_padding_must_be_a_row():
    with pytest.raises(ValueError, match="position_padding_idx=-1 is no row"):
        KDNASConfig(position_padding_idx=-1)
