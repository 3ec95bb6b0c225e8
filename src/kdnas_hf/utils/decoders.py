"""What a masked language model makes its logits from, whatever its head looks like."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


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


@torch.no_grad()
def teacher_decoder_inputs(model: PreTrainedModel, hidden_states: torch.Tensor) -> DecoderInputs:
    """What a teacher's logits are made from, given the last states ``(positions, hidden_size)`` of its encoder.

    The forward pass of any masked language model, in eval mode, takes them from its encoder's place up to its decoder.

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
    known, tokens = decoder.out_features, model.config.vocab_size
    if known < tokens:
        raise _no_logits(model, f"has output embeddings for {known} of {tokens} tokens")
    return decoder


def _no_logits(model: PreTrainedModel, problem: str) -> ValueError:
    return ValueError(
        f"{type(model).__name__} {problem}, so that logits cannot be learned from it; choose a masked language model "
        "with a linear decoder, such as BertForMaskedLM or XLMRobertaForMaskedLM, or leave the loss logits out."
    )
