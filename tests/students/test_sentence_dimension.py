"""Shorter sentence vectors: the projection that keeps inner products best, folded into the head."""

import numpy as np
import pytest
import torch
from torch import nn

from kdnas_hf.students import SentenceEncoder
from kdnas_hf.students.sentence_dimension import encode_with_prompts, neighbours_kept, shorten_vectors
from kdnas_hf.utils.sentence_head import Normalize, SentenceHead
from tiny_teacher import make_teacher_model, make_texts

PROMPTS = {"query": "bap: ", "passage": "dit: "}


def linear(size_in, size_out, bias=True):
    torch.manual_seed(0)
    return nn.Linear(size_in, size_out, bias=bias)


@pytest.fixture
def model():
    return make_teacher_model(layers=2).eval()


def encoder(model, tokenizer, *layers, prompts=PROMPTS):
    return SentenceEncoder(model, tokenizer, SentenceHead("mean", layers, prompts).eval())


def shortened(one, texts, dimension):
    return SentenceEncoder(one.model, one.tokenizer, shorten_vectors(one, texts, dimension))


@pytest.mark.parametrize(
    "layers",
    [
        (),
        (Normalize(),),
        (linear(32, 20), Normalize()),
        (linear(32, 20, bias=False),),
        (linear(32, 20), nn.Tanh(), Normalize()),  # an activation stays before the map
    ],
    ids=["pooled", "normalized", "projected", "without constant", "activated"],
)
def test_vectors_are_the_projection_on_their_principal_directions(model, tokenizer, layers):
    before, texts = encoder(model, tokenizer, *layers), make_texts(100)
    old, new = (encode_with_prompts(one, texts).astype(np.float64) for one in (before, shortened(before, texts, 5)))
    _, _, directions = np.linalg.svd(old, full_matrices=False)
    wanted = old @ directions[:5].T
    if layers and isinstance(layers[-1], Normalize):
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    # directions have no sign
    np.testing.assert_allclose(np.abs(new), np.abs(wanted), atol=1e-3)
    np.testing.assert_allclose(new @ new.T, wanted @ wanted.T, atol=1e-3)


def test_all_dimensions_are_a_rotation_whose_first_ones_are_worth_most(model, tokenizer):
    before, texts, other = encoder(model, tokenizer, Normalize()), make_texts(200), make_texts(100, seed=1)
    rotated = shortened(before, texts, 32)
    old, new = encode_with_prompts(before, other), encode_with_prompts(rotated, other)
    np.testing.assert_allclose(old @ old.T, new @ new.T, atol=1e-4)
    assert neighbours_kept(old, new) == 1
    kept = [neighbours_kept(old, new[:, :size]) for size in (2, 8, 16)]
    assert kept == sorted(kept)
    assert kept[-1] > neighbours_kept(old, old[:, :16])  # not so before: any direction may be the first


def test_prompts_take_turns_and_the_encoder_stays_as_it_is(model, tokenizer):
    one, texts = encoder(model, tokenizer), make_texts(3)
    digest = one.head.digest()
    found = encode_with_prompts(one, texts)
    for text, prompt, vector in zip(texts, ("query", "passage", "query"), found, strict=True):
        np.testing.assert_allclose(one.encode([text], prompt)[0], vector, atol=1e-5)
    shorten_vectors(one, make_texts(50), 3)
    assert one.head.digest() == digest
    without = encoder(model, tokenizer, prompts={})
    np.testing.assert_allclose(encode_with_prompts(without, texts), without.encode(texts), atol=1e-6)


@pytest.mark.parametrize(("dimension", "message"), [(33, "the vectors have 32"), (0, "from 1 to 32"), (9, "not 8")])
def test_impossible_dimensions_are_refused(model, tokenizer, dimension, message):
    with pytest.raises(ValueError, match=rf"^embedding_dimension={dimension}.*{message}"):
        shorten_vectors(encoder(model, tokenizer), make_texts(8), dimension)
