"""Predictions of masked tokens: what logits over the vocabulary are made from, and losses on them in chunks.

Logits of ``positions x vocabulary`` are the largest tensor of a masked language model by far. They are made for a few
positions at a time, and once more in the backward pass (`torch.utils.checkpoint`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.activations import gelu

from ..students import InheritedWordEmbeddings, KDNASForMaskedLM
from ..utils.decoders import DecoderInputs

# numbers that logits of one chunk may have: 64 MiB in float32
_LOGITS_AT_A_TIME = 2**24


def decoder_inputs(model: KDNASForMaskedLM, hidden_states: torch.Tensor) -> DecoderInputs:
    """What a student's logits are made from, given its last states ``(positions, hidden_size)`` where it predicts.

    With inherited word embeddings, the states are mapped into the teacher's space and the weight is the teacher's
    frozen table, so that the product of table and projection is never made.
    """
    head = model.lm_head
    states = head.layer_norm(gelu(head.dense(hidden_states)))
    embeddings = model.get_input_embeddings()
    if isinstance(embeddings, InheritedWordEmbeddings):
        return DecoderInputs(states @ embeddings.projection.T, embeddings.table, head.decoder.bias)
    return DecoderInputs(states, head.decoder.weight, head.decoder.bias)


def log_probabilities(decoder: DecoderInputs, rows: slice, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities over the vocabulary at some positions ``(rows, vocab_size)``, at least float32."""
    bias = None if decoder.bias is None else decoder.bias.to(decoder.weight.dtype)
    logits = nn.functional.linear(decoder.states[rows].to(decoder.weight.dtype), decoder.weight, bias)
    return (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)


def sum_over_positions(loss: Callable[..., torch.Tensor], *decoders: DecoderInputs) -> torch.Tensor:
    """Sum of a loss over positions, whose logits are made for a few at a time and not kept for the backward pass.

    Args:
        loss: Called with the decoders and the slice of positions; gives a scalar.
        *decoders: Of the student, and of the teacher where it is compared.
    """
    # cast once, not for each chunk: autocast keeps no copy of weights that do not train
    wanted = [DecoderInputs(d.states, d.weight.to(_matmul_dtype(d.states)), d.bias) for d in decoders]
    states, weight, _ = wanted[0]
    step = max(_LOGITS_AT_A_TIME // len(weight), 1)
    total = states.sum() * 0.0  # a graph also where no token was masked
    for start in range(0, len(states), step):
        rows = slice(start, min(start + step, len(states)))
        total = total + checkpoint(loss, *wanted, rows, use_reentrant=False, preserve_rng_state=False)
    return total


def _matmul_dtype(states: torch.Tensor) -> torch.dtype:
    """What autocast multiplies in, else the dtype of the states."""
    device = states.device.type
    autocast = torch.is_autocast_enabled(device) and states.dtype != torch.float64
    return torch.get_autocast_dtype(device) if autocast else states.dtype
