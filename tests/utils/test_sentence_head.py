"""Sentence heads: the vectors that they make, and the files in which sentence-transformers keeps them."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from kdnas_hf.students import SentenceEncoder
from kdnas_hf.utils.sentence_head import POOLING_MODES, Normalize, SentenceHead, pool
from tiny_teacher import make_teacher_model, make_texts, make_tokenizer

STATES = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [7.0, 7.0]], [[2.0, -1.0], [4.0, 5.0], [9.0, 9.0]]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("mean", [[11 / 3, 5.0], [3.0, 2.0]]),
        ("cls", [[1.0, 2.0], [2.0, -1.0]]),
        ("lasttoken", [[7.0, 7.0], [4.0, 5.0]]),
        ("max", [[7.0, 7.0], [4.0, 5.0]]),
        ("weightedmean", [[28 / 6, 35 / 6], [10 / 3, 3.0]]),
        ("mean_sqrt_len_tokens", [[11 / 3**0.5, 15 / 3**0.5], [6 / 2**0.5, 4 / 2**0.5]]),
    ],
)
def test_pooling(mode, expected):
    torch.testing.assert_close(pool(STATES, MASK, mode), torch.tensor(expected))


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_nothing_of_padding_reaches_a_vector(mode):
    spoilt = STATES.clone()
    spoilt[1, 2] = torch.nan
    torch.testing.assert_close(pool(spoilt, MASK, mode), pool(STATES, MASK, mode))


def test_pooling_in_bf16_sums_in_float32():
    states = torch.ones(1, 1000, 1, dtype=torch.bfloat16)
    assert pool(states, torch.ones(1, 1000), "mean_sqrt_len_tokens").item() == pytest.approx(1000**0.5, rel=1e-6)


def test_several_poolings_are_side_by_side_and_layers_follow():
    linear = nn.Linear(4, 3)
    head = SentenceHead(["cls", "mean"], [linear, nn.Tanh(), Normalize()])
    both = torch.cat([pool(STATES, MASK, "cls"), pool(STATES, MASK, "mean")], dim=1)
    vectors = head(STATES, MASK)
    torch.testing.assert_close(vectors, nn.functional.normalize(linear(both).tanh(), dim=-1))
    assert head.dimension(2) == 3
    assert SentenceHead(["cls", "mean"]).dimension(2) == 4


@pytest.fixture
def saved(tmp_path):
    model, tokenizer = make_teacher_model().eval(), make_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    prompts = {"query": "bap ", "passage": "bar "}
    head = SentenceHead("weightedmean", [nn.Linear(32, 8), nn.Tanh(), Normalize()], prompts, "query", "dot", 20)
    head.save(tmp_path)
    return tmp_path, head


def test_a_head_comes_back_from_its_files(saved):
    folder, head = saved
    loaded = SentenceHead.load(folder)
    states, mask = torch.randn(2, 5, 32), torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    torch.testing.assert_close(loaded(states, mask), head(states, mask))
    for name in ("pooling", "prompts", "default_prompt", "similarity", "max_length"):
        assert getattr(loaded, name) == getattr(head, name)
    assert loaded.digest() == head.digest()
    assert SentenceHead("mean", head.layers).digest() != head.digest()


def test_vectors_are_those_of_sentence_transformers(saved):
    library = pytest.importorskip("sentence_transformers")
    folder, _ = saved
    theirs, ours = library.SentenceTransformer(str(folder)), SentenceEncoder.from_pretrained(folder, batch_size=3)
    texts = [*make_texts(7), "bap " * 40]  # the last is cut off
    for prompt in (None, "query", "passage"):
        np.testing.assert_allclose(ours.encode(texts, prompt), theirs.encode(texts, prompt), atol=1e-5)
    assert theirs.max_seq_length == 20
    assert theirs.similarity_fn_name == "dot"


@pytest.mark.parametrize("pooling", POOLING_MODES)
def test_a_head_that_the_library_saved_is_read(tmp_path, saved, pooling):
    library = pytest.importorskip("sentence_transformers")
    models = library.models
    transformer = models.Transformer(str(saved[0]))
    modules = [transformer, models.Pooling(32, pooling_mode=pooling), models.Normalize()]
    theirs = library.SentenceTransformer(modules=modules, prompts={"query": "bap "})
    theirs.save(str(tmp_path / "theirs"))
    ours = SentenceEncoder.from_pretrained(tmp_path / "theirs")
    texts = make_texts(5)
    np.testing.assert_allclose(ours.encode(texts, "query"), theirs.encode(texts, prompt_name="query"), atol=1e-5)


def test_order_and_batches_change_nothing(saved):
    encoder = SentenceEncoder.from_pretrained(saved[0])
    texts = make_texts(9)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode(texts), alone, atol=1e-5)
    assert encoder.encode([]).shape == (0, 8)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("modules.json", lambda m: m[:1] + m[2:], "no module Pooling"),
        ("modules.json", lambda m: [*m, {**m[1], "type": "their.own.Router"}], "Router"),
        ("1_Pooling/config.json", lambda c: c | {"include_prompt": False}, "include_prompt"),
        ("1_Pooling/config.json", lambda c: {"pooling_mode": "attention"}, "attention"),
        ("1_Pooling/config.json", lambda c: {"word_embedding_dimension": 32}, "pooling"),
        ("2_Dense/config.json", lambda c: c | {"activation_function": "their.own.Maxout"}, "Maxout"),
        ("2_Dense/config.json", lambda c: c | {"use_residual": True}, "residual"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(saved, file, change, said):
    folder, _ = saved
    (folder / file).write_text(json.dumps(change(json.loads((folder / file).read_text()))))
    with pytest.raises(ValueError, match=said) as error:
        SentenceHead.load(folder, field="teacher")
    assert str(error.value).startswith(f"teacher={str(folder)!r}")
    assert "\n" not in str(error.value)


def test_a_model_without_a_head_is_no_encoder_of_sentences(tmp_path):
    make_teacher_model().save_pretrained(tmp_path)
    assert SentenceHead.load(tmp_path) is None
    with pytest.raises(ValueError, match=r"student=.*modules\.json"):
        SentenceEncoder.from_pretrained(tmp_path)


def test_prompts_have_to_be_known():
    head = SentenceHead("mean", prompts={"query": "q: "})
    assert (head.prompt(None), head.prompt("query")) == ("", "q: ")
    with pytest.raises(ValueError, match=r"prompt_name='document'.*query"):
        head.prompt("document")
    with pytest.raises(ValueError, match="default_prompt='document'"):
        SentenceHead("mean", prompts={"query": "q: "}, default_prompt="document")
    with pytest.raises(ValueError, match="pooling='middle'"):
        SentenceHead("middle")
