"""The teacher's features as a cache stores them: computed for a few texts, and rounded to its precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DataCollatorWithPadding

from .teacher import Teacher


@dataclass
class StoredFeature:
    """One feature of a shard's texts.

    Attributes:
        parts: What is stored, see `encode`.
        sums: ``(3, hidden_size)`` float64, sums over the tokens: squared error, value and squared value.
    """

    parts: tuple[torch.Tensor, ...]
    sums: torch.Tensor


def compute_features(
    teacher: Teacher, texts: Sequence[np.ndarray], features: Sequence[str], batch_size: int, precision: str
) -> dict[str, StoredFeature]:
    """Features of a few texts, computed side by side with texts of similar length so that little is padded."""
    lengths = torch.tensor([len(ids) for ids in texts])
    first_rows = lengths.cumsum(0) - lengths
    size = teacher.dimensions.hidden_size
    computed = {
        name: StoredFeature(empty_parts(int(lengths.sum()), size, precision), torch.zeros(3, size).double())
        for name in features
    }
    collator = DataCollatorWithPadding(teacher.tokenizer)
    order = lengths.argsort(stable=True)
    order = order[lengths[order] > 0]
    for batch in order.split(batch_size) if len(order) else ():
        inputs = collator([{"input_ids": texts[index].tolist()} for index in batch.tolist()])
        mask = inputs["attention_mask"].to(teacher.device)
        rows = _rows_of(first_rows[batch], lengths[batch])
        for name, values in teacher.features(inputs["input_ids"].to(teacher.device), mask, features).items():
            real = values[mask.bool()]
            encoded = encode(real, precision)
            computed[name].sums += _error_sums(real, decode(encoded)).cpu()
            for part, new in zip(computed[name].parts, encoded, strict=True):
                part[rows] = new.cpu()
    return computed


def _rows_of(first_rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Rows of the tokens of texts that begin at ``first_rows``, text by text."""
    before = lengths.cumsum(0) - lengths
    return torch.repeat_interleave(first_rows - before, lengths) + torch.arange(int(lengths.sum()))


def encode(values: torch.Tensor, precision: str) -> tuple[torch.Tensor, ...]:
    """What is stored of vectors ``(tokens, hidden_size)``: themselves, or for int8 scales ``(tokens,)`` and codes."""
    if precision != "int8":
        return (values.to(getattr(torch, precision)),)
    values = values.float()
    scales = values.abs().amax(-1) / 127
    codes = (values / scales.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)).round().to(torch.int8)
    return scales, codes


def decode(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Vectors ``(tokens, hidden_size)`` from what `encode` gave."""
    if len(parts) == 1:
        return parts[0]
    scales, codes = parts
    return codes.float().mul_(scales.unsqueeze(1))


def empty_parts(num_tokens: int, hidden_size: int, precision: str) -> tuple[torch.Tensor, ...]:
    """Room for what `encode` gives of vectors ``(num_tokens, hidden_size)``."""
    if precision == "int8":
        return torch.empty(num_tokens), torch.empty(num_tokens, hidden_size, dtype=torch.int8)
    return (torch.empty(num_tokens, hidden_size, dtype=getattr(torch, precision)),)


def bytes_per_token(hidden_size: int, precision: str) -> int:
    """Size of a stored vector, in bytes."""
    return sum(part.nbytes for part in empty_parts(1, hidden_size, precision))


def _error_sums(values: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """Sums of a batch ``(3, hidden_size)``; float32, since not every accelerator has float64."""
    exact = values.float()
    return torch.stack([(stored.float() - exact).square().sum(0), exact.sum(0), exact.square().sum(0)])


@dataclass(frozen=True)
class FeatureError:
    """How far what is stored of a feature is from what the teacher said.

    Attributes:
        relative: Mean squared error over the variance, all dimensions together.
        standardized: Mean over dimensions of the mean squared error over the variance.
    """

    relative: float
    standardized: float

    @classmethod
    def from_sums(cls, sums: torch.Tensor, num_tokens: int) -> FeatureError:
        """From sums over all tokens ``(3, hidden_size)``: squared error, value and squared value."""
        error, mean, square = sums / num_tokens
        variance = square - mean.square()
        # as in HiddenStateStatistics: a dimension in which the teacher is constant is left unscaled
        scale = torch.where(variance > 1e-12, variance, 1.0)
        return cls(float(error.sum() / scale.sum()), float((error / scale).mean()))
