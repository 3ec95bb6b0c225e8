"""How close the outputs of a compressed student are to those of the student before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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


@torch.no_grad()
def _sentence_vectors(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> torch.Tensor:
    """`(texts, hidden_size)` float64."""
    encoder: Any = model.base_model
    training, vectors = encoder.training, []
    encoder.eval()
    for start in range(0, len(texts), _TEXTS_PER_BATCH):
        batch = tokenizer(
            list(texts[start : start + _TEXTS_PER_BATCH]),
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        ).to(encoder.device)
        states = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"][..., None].to(states.dtype)
        vectors.append(((states * mask).sum(1) / mask.sum(1)).cpu().double())
    encoder.train(training)
    return torch.cat(vectors)


__all__ = ["OutputAgreement", "compare_outputs"]
