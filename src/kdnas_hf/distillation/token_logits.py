"""Predictions of masked tokens: what logits over the vocabulary are made from, and losses on them in chunks.

Logits of ``positions x vocabulary`` are the largest tensor of a masked language model by far. They are made for a few
positions at a time, and once more in the backward pass (`torch.utils.checkpoint`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.activations import gelu
from transformers.modeling_outputs import BaseModelOutput

from ..students import InheritedWordEmbeddings, KDNASForMaskedLM

# numbers that logits of one chunk may have: 64 MiB in float32
_LOGITS_AT_A_TIME = 2**24


class DecoderInputs(NamedTuple):
    """What logits over the vocabulary are made from: ``states @ weight.T + bias``.

    Attributes:
        states: ``(positions, size)``, as they enter the decoder.
        weight: ``(vocab_size, size)``.
        bias: ``(vocab_size,)``, or ``None``.
    """

    states: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


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


@torch.no_grad()
def teacher_decoder_inputs(model: PreTrainedModel, hidden_states: torch.Tensor) -> DecoderInputs:
    """What a teacher's logits are made from, whatever its head looks like.

    The model's own forward pass takes the hidden states from its encoder's place through its head, up to the decoder.

    Args:
        model: Any masked language model of transformers, in eval mode.
        hidden_states: ``(positions, hidden_size)``, the encoder's last states at the positions to predict.

    Raises:
        ValueError: If the model has no decoder, or one that is not a linear map from its head to the vocabulary.
    """
    decoder = _teacher_decoder(model)
    entered: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        entered.append(inputs[0])
        return inputs[0][..., :0, :]  # the decoder makes logits of no position

    of_encoder = model.base_model.__dict__
    own_forward = of_encoder.get("forward")  # an instance may have one already, as under accelerate
    positions = torch.zeros(1, len(hidden_states), dtype=torch.long, device=hidden_states.device)
    hook = decoder.register_forward_pre_hook(keep)
    of_encoder["forward"] = lambda *args, **kwargs: BaseModelOutput(last_hidden_state=hidden_states[None])
    try:
        with torch.autocast(hidden_states.device.type, enabled=False):
            model(input_ids=positions, attention_mask=torch.ones_like(positions), return_dict=True)
    finally:
        hook.remove()
        del of_encoder["forward"]
        if own_forward is not None:
            of_encoder["forward"] = own_forward
    if len(entered) != 1:
        raise _no_logits(model, "does not predict with its decoder")
    bias = decoder.bias
    if bias is None:  # the head may add one behind its decoder, as ESM's does
        shape = (len(decoder.weight),)
        biases = (p for name, p in model.named_parameters() if name.split(".")[-1] == "bias" and p.shape == shape)
        bias = next(biases, None)
    return DecoderInputs(entered[0].reshape(len(hidden_states), decoder.in_features), decoder.weight, bias)


def _teacher_decoder(model: PreTrainedModel) -> nn.Linear:
    decoder = model.get_output_embeddings()
    if decoder is None or model.base_model is model:
        raise _no_logits(model, "has no head that predicts tokens")
    if not isinstance(decoder, nn.Linear):
        raise _no_logits(model, f"predicts tokens by a {type(decoder).__name__}, not by a linear map")
    if decoder.out_features < model.config.vocab_size:
        known = f"{decoder.out_features} of {model.config.vocab_size}"
        raise _no_logits(model, f"has output embeddings for {known} tokens")
    return decoder


def _no_logits(model: PreTrainedModel, problem: str) -> ValueError:
    return ValueError(
        f"{type(model).__name__} {problem}, so that logits cannot be learned from it; choose a masked language model "
        "with a linear decoder, such as BertForMaskedLM or XLMRobertaForMaskedLM, or leave the loss logits out."
    )


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
    positions, vocabulary = len(wanted[0].states), len(wanted[0].weight)
    step = max(_LOGITS_AT_A_TIME // vocabulary, 1)
    total = wanted[0].states.sum() * 0.0  # a graph also where no token was masked
    for start in range(0, positions, step):
        rows = slice(start, min(start + step, positions))
        total = total + checkpoint(loss, *wanted, rows, use_reentrant=False, preserve_rng_state=False)
    return total


def _matmul_dtype(states: torch.Tensor) -> torch.dtype:
    """What autocast multiplies in, else the dtype of the states."""
    device = states.device.type
    autocast = torch.is_autocast_enabled(device) and states.dtype != torch.float64
    return torch.get_autocast_dtype(device) if autocast else states.dtype
