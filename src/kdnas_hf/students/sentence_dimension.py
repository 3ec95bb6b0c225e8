"""Fewer dimensions of sentence vectors: the directions in which an encoder's vectors vary most, in that order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..utils.sentence_head import Normalize, SentenceHead
from .sentence_encoder import SentenceEncoder

MAX_TEXTS = 10_000


def shorten_vectors(encoder: SentenceEncoder, texts: Sequence[str], dimension: int) -> SentenceHead:
    """A head whose vectors are shorter, with inner products as close to the encoder's as a linear map allows.

    The map is the projection on the first principal directions of the vectors about the origin. They come in the order
    of their share, so that shorter ones can be had by cutting the new vectors off, as of Matryoshka embeddings
    (Kusupati et al., arXiv 2205.13147), and making them of length 1 again. The vectors lie in a space of their own: an
    index of the encoder's has to be made anew.

    Args:
        encoder: The encoder; it stays as it is.
        texts: Texts like those to come, at most ``MAX_TEXTS`` of which are read, evenly spaced as a corpus is in the
            order of its languages, and with each of the encoder's prompts in turn.
        dimension: Of the new vectors.

    Raises:
        ValueError: If the encoder's vectors are not longer, or there are fewer texts than dimensions.
    """
    before = encoder.dimension
    if not 1 <= dimension <= before:
        raise ValueError(f"embedding_dimension={dimension}: the vectors have {before}; choose from 1 to {before}.")
    if len(texts) < dimension:
        raise ValueError(f"embedding_dimension={dimension} needs as many texts, not {len(texts)}; give more.")
    read = texts[:: -(-len(texts) // max(MAX_TEXTS, dimension))]
    vectors = torch.from_numpy(encode_with_prompts(encoder, read)).double()
    _, directions = torch.linalg.eigh(vectors.T @ vectors)  # in ascending order
    basis = directions.flip(1)[:, :dimension].T.contiguous()
    layers, last = list(encoder.head.layers), Normalize() if encoder.head.normalizes else None
    if last is not None:
        layers.pop()
    weight, bias = basis, None
    if layers and isinstance(layers[-1], nn.Linear):  # one map after another is a map
        linear = layers.pop()
        weight = basis @ linear.weight.double()
        bias = None if linear.bias is None else basis @ linear.bias.double()
    made = nn.Linear(weight.shape[1], dimension, bias=bias is not None)
    made.load_state_dict({"weight": weight.float()} | ({} if bias is None else {"bias": bias.float()}))
    return encoder.head.followed_by(*layers, made, *([] if last is None else [last])).eval()


def encode_with_prompts(encoder: SentenceEncoder, texts: Sequence[str]) -> np.ndarray:
    """Vectors ``(texts, dimension)``, the n-th text with the n-th prompt in turn, or with none where there is none."""
    names: list[str | None] = [*encoder.prompts] or [None]
    vectors = np.empty((len(texts), encoder.dimension), dtype=np.float32)
    for turn, name in enumerate(names):
        vectors[turn :: len(names)] = encoder.encode(texts[turn :: len(names)], name)
    return vectors


def neighbours_kept(before: np.ndarray, after: np.ndarray) -> float:
    """Share of texts whose nearest other text by cosine is the same by both vectors ``(texts, dimension)``."""
    return float((_nearest(before) == _nearest(after)).mean())


def _nearest(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled = vectors / np.where(length > 0, length, 1)
    similarity = scaled @ scaled.T
    np.fill_diagonal(similarity, -2)
    return similarity.argmax(1)
