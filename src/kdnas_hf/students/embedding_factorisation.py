"""Students whose word embeddings are smaller than their hidden states: a trained table, factorised."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from .inheritance import fold_embeddings
from .modeling_kdnas import KDNASForMaskedLM, KDNASModel, KDNASPreTrainedModel
from .native import from_native

_ROWS_PER_CHUNK = 16384


@dataclass(frozen=True, eq=False)
class FactorisedEmbeddings:
    """A student with smaller word embeddings.

    Attributes:
        student: The smaller student; nothing is shared with the one before.
        kept_variance: Share of the variance of the word embeddings that is kept, weighted as the factorisation was.
        embedding_size_before: Size of the word embeddings before.
    """

    student: KDNASPreTrainedModel
    kept_variance: float
    embedding_size_before: int

    @property
    def embedding_size(self) -> int:
        """Size of the word embeddings now."""
        return self.student.config.word_embedding_size


@torch.no_grad()
def factorise_embeddings(
    student: PreTrainedModel, embedding_size: int, counts: np.ndarray | torch.Tensor | None = None
) -> FactorisedEmbeddings:
    """Factorise a student's word embeddings: a table `(vocab_size, embedding_size)` and a map to the hidden size.

    The embedding of a token is approximated by the mean over the vocabulary and the first principal components. The
    mean costs nothing: it moves into the token type embedding, which is added to every token. With `counts` this is
    the best approximation, in the squared error and of this size, of embeddings as the text has them; without, of the
    table's rows.

    Args:
        student: A student without a head, or with one that classifies; a stock XLM-RoBERTa becomes a student.
        embedding_size: Size of the word embeddings, smaller than it is.
        counts: `(vocab_size,)`, how often each token occurs; see `count_tokens`. By default all count alike.

    Returns:
        The smaller student, to be used as the one before or to be trained further.

    Raises:
        ValueError: If `embedding_size` is not smaller, `counts` do not fit, or the student has a masked language
            modeling head, which decodes in the space of the word embeddings and would have to be learnt anew.
    """
    own = copy.deepcopy(student) if isinstance(student, KDNASPreTrainedModel) else from_native(student)
    if isinstance(own, KDNASForMaskedLM):
        raise ValueError(
            f"{type(student).__name__} decodes with its word embeddings: a head for smaller ones has to be learnt. "
            "Factorise the encoder (student.kdnas) and train what add_masked_lm_head puts on it."
        )
    fold_embeddings(own)
    before = own.config.word_embedding_size
    if isinstance(embedding_size, bool) or not isinstance(embedding_size, int) or not 1 <= embedding_size < before:
        raise ValueError(
            f"embedding_size={embedding_size!r} makes word embeddings of size {before} no smaller; choose from 1 to "
            f"{before - 1}."
        )
    weights = _weights(counts, own.config.vocab_size)
    share = _factorise(own, embedding_size, weights)
    return FactorisedEmbeddings(own.train(student.training), kept_variance=share, embedding_size_before=before)


def _factorise(student: KDNASPreTrainedModel, embedding_size: int, weights: torch.Tensor) -> float:
    """Factorise in place; gives the share of the variance that is kept."""
    encoder = student.base_model
    assert isinstance(encoder, KDNASModel)
    embeddings = encoder.embeddings
    words = embeddings.word_embeddings
    assert isinstance(words, nn.Embedding)
    table, size = words.weight, student.config.hidden_size
    # what maps a row to the hidden size; the identity where it has that size
    to_hidden = torch.eye(size) if embeddings.projection is None else embeddings.projection.weight
    to_hidden = to_hidden.to("cpu", torch.float64)
    mean, scatter = _moments(table, weights)
    variances, directions = torch.linalg.eigh(to_hidden @ scatter @ to_hidden.T)
    basis = directions.flip(1)[:, :embedding_size]  # (hidden_size, embedding_size), orthonormal columns
    to_small = to_hidden.T @ basis
    rows = [(rows.to("cpu", torch.float64) - mean) @ to_small for rows in table.split(_ROWS_PER_CHUNK)]
    small = torch.cat(rows).to(table)
    embeddings.word_embeddings = nn.Embedding.from_pretrained(small, freeze=False, padding_idx=words.padding_idx)
    embeddings.projection = nn.Linear(embedding_size, size, bias=False).to(device=table.device, dtype=table.dtype)
    embeddings.projection.weight.copy_(basis)
    embeddings.token_type_embeddings.weight.add_((to_hidden @ mean).to(table))
    student.config.embedding_size = embedding_size
    return float(variances[-embedding_size:].sum() / variances.sum())


def _weights(counts: np.ndarray | torch.Tensor | None, vocab_size: int) -> torch.Tensor:
    """`(vocab_size,)` float64, adding up to one."""
    if counts is None:
        return torch.full((vocab_size,), 1 / vocab_size, dtype=torch.float64)
    weights = torch.as_tensor(counts).to("cpu", torch.float64)
    if weights.shape != (vocab_size,):
        raise ValueError(f"counts have the shape {tuple(weights.shape)}; a vocab_size={vocab_size} needs as many.")
    if not bool((weights >= 0).all()) or not bool(weights.sum() > 0):
        raise ValueError("counts must be numbers of at least zero, not all of them zero.")
    return weights / weights.sum()


def _moments(table: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean `(size,)` and covariance `(size, size)` of the rows, in float64."""
    size = table.shape[1]
    mean = torch.zeros(size, dtype=torch.float64)
    for rows, share in zip(table.split(_ROWS_PER_CHUNK), weights.split(_ROWS_PER_CHUNK), strict=True):
        mean += share @ rows.to("cpu", torch.float64)
    scatter = torch.zeros(size, size, dtype=torch.float64)
    for rows, share in zip(table.split(_ROWS_PER_CHUNK), weights.split(_ROWS_PER_CHUNK), strict=True):
        centred = rows.to("cpu", torch.float64) - mean
        scatter.addmm_((centred * share[:, None]).T, centred)
    return mean, scatter


__all__ = ["FactorisedEmbeddings", "factorise_embeddings"]
