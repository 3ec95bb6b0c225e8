"""How close the outputs of a compressed student are to those of the student before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..utils.sentence_head import SentenceHead
from .sentence_encoder import SentenceEncoder

_TEXTS_PER_BATCH = 64


@dataclass(frozen=True)
class OutputAgreement:
    """Agreement of two models' sentence vectors, the means of the last hidden states over a text's tokens.

    Vectors and not states of tokens, as the two may split a text differently.

    Attributes:
        texts: Number of texts.
        cosine: Mean cosine.
        lowest_cosine: The lowest.
        r2: Share of the variance of the first model's vectors that those of the second explain, as they are.
    """

    texts: int
    cosine: float
    lowest_cosine: float
    r2: float


def compare_outputs(
    before: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    now: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    texts: Sequence[str],
    max_length: int,
) -> OutputAgreement:
    """Compare two models, each with its tokenizer, whose hidden states are of one size.

    Args:
        before: The model to agree with.
        now: The other.
        texts: At least two.
        max_length: Longest text in tokens.
    """
    wanted, found = (_sentence_vectors(model, tokenizer, texts, max_length) for model, tokenizer in (before, now))
    cosines = torch.nn.functional.cosine_similarity(wanted, found)
    error = (wanted - found).square().sum() / (wanted - wanted.mean(0)).square().sum()
    return OutputAgreement(len(texts), float(cosines.mean()), float(cosines.min()), 1 - float(error))


def _sentence_vectors(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> torch.Tensor:
    """Means of the last states, `(texts, hidden_size)` in float64."""
    head = SentenceHead("mean", max_length=max_length)
    encoder = SentenceEncoder(cast(PreTrainedModel, model.base_model), tokenizer, head, _TEXTS_PER_BATCH)
    return torch.from_numpy(encoder.encode(texts)).double()


__all__ = ["OutputAgreement", "compare_outputs"]
