"""Losses on predicted tokens: against the teacher's predictions, and against the tokens themselves.

Logits of ``positions x vocabulary`` are the largest tensor of a masked language model by far. None is ever made here:
the vocabulary goes by in chunks, once for the loss and once more, recomputed, for its gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.activations import gelu
from transformers.modeling_outputs import BaseModelOutput

from ...students import InheritedWordEmbeddings, KDNASForMaskedLM
from ..batch import IGNORED_LABEL

CHUNK_SIZE = 8192


class DecoderInputs(NamedTuple):
    """What logits are made from: ``states @ weight.T + bias``.

    Attributes:
        states: ``(positions, size)``, as they enter the decoder.
        weight: ``(vocab_size, size)``.
        bias: ``(vocab_size,)``, or ``None``.
    """

    states: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


def decoder_inputs(model: KDNASForMaskedLM, hidden_states: torch.Tensor) -> DecoderInputs:
    """What a student's logits are made from.

    With inherited word embeddings, the states are mapped into the teacher's space and the weight is the teacher's
    frozen table, so that the product of table and projection is never made.

    Args:
        model: The student with its head.
        hidden_states: ``(positions, hidden_size)``, the encoder's last states at the positions to predict.
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
        ValueError: If the model has no decoder, or one that is no linear map from its head to the vocabulary.
    """
    decoder = _teacher_decoder(model)
    entered: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        entered.append(inputs[0])
        return inputs[0][..., :0, :]  # the decoder makes logits of no position

    hook = decoder.register_forward_pre_hook(keep)
    positions = torch.zeros(1, len(hidden_states), dtype=torch.long, device=hidden_states.device)
    device_type = hidden_states.device.type
    try:
        with _encoder_gives(model, hidden_states[None]), torch.autocast(device_type, enabled=False):
            model(input_ids=positions, attention_mask=torch.ones_like(positions), return_dict=True)
    finally:
        hook.remove()
    if len(entered) != 1:
        raise ValueError(_NO_LOGITS.format(model=type(model).__name__, problem="does not predict with its decoder"))
    states = entered[0].reshape(len(hidden_states), decoder.in_features)
    return DecoderInputs(states, decoder.weight, _decoder_bias(model, decoder))


_NO_LOGITS = (
    "{model} {problem}, so that logits cannot be learnt from it; choose a masked language model with a linear "
    "decoder, such as BertForMaskedLM or XLMRobertaForMaskedLM, or leave the loss logits out."
)


def _teacher_decoder(model: PreTrainedModel) -> nn.Linear:
    decoder = model.get_output_embeddings()
    problem = None
    if decoder is None or model.base_model is model:
        problem = "has no head that predicts tokens"
    elif not isinstance(decoder, nn.Linear):
        problem = f"predicts tokens by a {type(decoder).__name__}, not by a linear map"
    elif decoder.out_features < model.config.vocab_size:
        problem = f"has output embeddings for {decoder.out_features} of {model.config.vocab_size} tokens"
    if problem is not None:
        raise ValueError(_NO_LOGITS.format(model=type(model).__name__, problem=problem))
    assert isinstance(decoder, nn.Linear)
    return decoder


def _decoder_bias(model: PreTrainedModel, decoder: nn.Linear) -> torch.Tensor | None:
    """The decoder's bias, or the one that the head adds after it (ESM)."""
    if decoder.bias is not None:
        return decoder.bias
    vocabulary = (len(decoder.weight),)
    biases = (p for name, p in model.named_parameters() if name.split(".")[-1] == "bias" and p.shape == vocabulary)
    return next(biases, None)


@contextmanager
def _encoder_gives(model: PreTrainedModel, hidden_states: torch.Tensor) -> Iterator[None]:
    """Make the encoder under a head return the given states ``(1, positions, hidden_size)``, without computing."""
    encoder = model.base_model
    own = encoder.__dict__.get("forward")  # an instance may have one already, as under accelerate
    encoder.__dict__["forward"] = lambda *args, **kwargs: BaseModelOutput(last_hidden_state=hidden_states)
    try:
        yield
    finally:
        del encoder.__dict__["forward"]
        if own is not None:
            encoder.__dict__["forward"] = own


def logit_loss(
    student_states: torch.Tensor,
    student_decoder_weight: torch.Tensor,
    student_bias: torch.Tensor | None,
    teacher_states: torch.Tensor,
    teacher_decoder_weight: torch.Tensor,
    teacher_bias: torch.Tensor | None,
    temperature: float,
    num_tokens: torch.Tensor | float,
    chunk_size: int = CHUNK_SIZE,
) -> torch.Tensor:
    """KL divergence of the student's softened predictions from the teacher's, times T² (Hinton et al., 1503.02531).

    Logits are ``states @ weight.T + bias``. Gradients flow to the student's states, and to its weight and bias where
    these are trained; never to the teacher. The student's logits are multiplied in autocast's dtype, the teacher's in
    the dtype of its states; all else is float32.

    Args:
        student_states: ``(positions, student_size)``, as they enter the decoder.
        student_decoder_weight: ``(vocab_size, student_size)``.
        student_bias: ``(vocab_size,)``, or ``None``.
        teacher_states: ``(positions, teacher_size)``.
        teacher_decoder_weight: ``(vocab_size, teacher_size)``.
        teacher_bias: ``(vocab_size,)``, or ``None``.
        temperature: T, which both logits are divided by.
        num_tokens: What to divide by: the predicted positions of the whole accumulated batch, of which these may be a
            part.
        chunk_size: Rows of the vocabulary at once. Memory beyond the inputs is a few times
            ``positions * chunk_size`` numbers.

    Returns:
        A float32 scalar (float64 for float64 inputs), in nats.

    Raises:
        ValueError: If the vocabularies differ, or the temperature or the chunk size is not positive.
    """
    _check_chunk_size(chunk_size)
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be greater than 0.")
    if len(student_decoder_weight) != len(teacher_decoder_weight):
        raise ValueError(
            f"the student predicts vocab_size={len(student_decoder_weight)} tokens, its teacher "
            f"{len(teacher_decoder_weight)}; logits can only be learnt from a teacher of the same vocabulary."
        )
    total = _SummedDivergence.apply(
        student_states,
        student_decoder_weight,
        student_bias,
        teacher_states,
        teacher_decoder_weight,
        teacher_bias,
        temperature,
        chunk_size,
    )
    return total * temperature**2 / num_tokens


def masked_lm_loss(
    states: torch.Tensor,
    decoder_weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    num_tokens: torch.Tensor | float,
    chunk_size: int = CHUNK_SIZE,
) -> torch.Tensor:
    """Cross-entropy of predicted tokens (BERT, arXiv 1810.04805), with logits made as in `logit_loss`.

    Args:
        states: ``(positions, size)``, as they enter the decoder.
        decoder_weight: ``(vocab_size, size)``.
        bias: ``(vocab_size,)``, or ``None``.
        labels: ``(positions,)``, the right tokens; positions with label -100 do not count. A label outside of the
            vocabulary makes the loss infinite: looking for it beforehand would stall an accelerator at each step.
        num_tokens: What to divide by: the predicted positions of the whole accumulated batch, of which these may be a
            part.
        chunk_size: Rows of the vocabulary at once.

    Returns:
        A float32 scalar (float64 for float64 inputs), in nats.

    Raises:
        ValueError: If the chunk size is not positive.
    """
    _check_chunk_size(chunk_size)
    return _SummedCrossEntropy.apply(states, decoder_weight, bias, labels, chunk_size) / num_tokens


def _check_chunk_size(chunk_size: int) -> None:
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1.")


class _SummedDivergence(torch.autograd.Function):
    """Sum over positions of KL(teacher || student) at a temperature."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        teacher_states: torch.Tensor,
        teacher_weight: torch.Tensor,
        teacher_bias: torch.Tensor | None,
        temperature: float,
        chunk_size: int,
    ) -> torch.Tensor:
        student = _Decoder(states, weight, bias, _matmul_dtype(states), temperature)
        teacher = _Decoder(teacher_states, teacher_weight, teacher_bias, teacher_states.dtype, temperature)
        student_lse, teacher_lse = student.least_lse(), teacher.least_lse()
        # mean of (teacher's logit - student's) under the teacher's distribution over the rows that went by so far
        difference = torch.zeros_like(teacher_lse)
        for rows in student.chunks(chunk_size):
            student_logits, teacher_logits = student.logits(rows), teacher.logits(rows)
            student_lse = torch.logaddexp(student_lse, student_logits.logsumexp(1))
            before, teacher_lse = teacher_lse, torch.logaddexp(teacher_lse, teacher_logits.logsumexp(1))
            student_logits.neg_().add_(teacher_logits)
            probabilities = teacher_logits.sub_(teacher_lse[:, None]).exp_()
            difference = difference * (before - teacher_lse).exp() + student_logits.mul_(probabilities).sum(1)
        ctx.save_for_backward(
            states, weight, bias, teacher_states, teacher_weight, teacher_bias, student_lse, teacher_lse
        )
        ctx.settings = (student.dtype, temperature, chunk_size)
        return (difference + student_lse - teacher_lse).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, bias, teacher_states, teacher_weight, teacher_bias, student_lse, teacher_lse = ctx.saved_tensors
        dtype, temperature, chunk_size = ctx.settings
        student = _Decoder(states, weight, bias, dtype, temperature)
        teacher = _Decoder(teacher_states, teacher_weight, teacher_bias, teacher_states.dtype, temperature)
        gradients = _DecoderGradients(student, ctx.needs_input_grad[:3], grad / temperature)
        for rows in student.chunks(chunk_size):
            student_probabilities = student.logits(rows).sub_(student_lse[:, None]).exp_()
            teacher_probabilities = teacher.logits(rows).sub_(teacher_lse[:, None]).exp_()
            gradients.add(rows, student_probabilities.sub_(teacher_probabilities))
        return (*gradients.result(), None, None, None, None, None)


class _SummedCrossEntropy(torch.autograd.Function):
    """Sum over labelled positions of the cross-entropy."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        chunk_size: int,
    ) -> torch.Tensor:
        decoder = _Decoder(states, weight, bias, _matmul_dtype(states), 1.0)
        lse = decoder.least_lse()
        label_logits = torch.full_like(lse, -torch.inf)
        for rows in decoder.chunks(chunk_size):
            logits = decoder.logits(rows)
            lse = torch.logaddexp(lse, logits.logsumexp(1))
            column, inside = _column(labels, rows)
            label_logits = torch.where(inside, logits.gather(1, column[:, None])[:, 0], label_logits)
        ctx.save_for_backward(states, weight, bias, labels, lse)
        ctx.settings = (decoder.dtype, chunk_size)
        return (lse - label_logits).masked_fill(labels == IGNORED_LABEL, 0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, bias, labels, lse = ctx.saved_tensors
        dtype, chunk_size = ctx.settings
        decoder = _Decoder(states, weight, bias, dtype, 1.0)
        gradients = _DecoderGradients(decoder, ctx.needs_input_grad[:3], grad)
        for rows in decoder.chunks(chunk_size):
            probabilities = decoder.logits(rows).sub_(lse[:, None]).exp_()
            column, inside = _column(labels, rows)
            probabilities.scatter_add_(1, column[:, None], -inside[:, None].to(probabilities.dtype))
            gradients.add(rows, probabilities.masked_fill_((labels == IGNORED_LABEL)[:, None], 0))
        return (*gradients.result(), None, None)


def _column(labels: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each label is within a chunk of the vocabulary, any place if it is not, and whether it is."""
    column = (labels - rows.start).clamp(0, rows.stop - rows.start - 1)
    return column, (labels >= rows.start) & (labels < rows.stop)


def _matmul_dtype(states: torch.Tensor) -> torch.dtype:
    """What autocast would multiply in; a backward pass may run outside of it, but has to multiply in the same."""
    device = states.device.type
    if torch.is_autocast_enabled(device) and states.dtype == torch.float32:
        return torch.get_autocast_dtype(device)
    return states.dtype


class _Decoder:
    """Makes logits for some rows of the vocabulary."""

    def __init__(
        self,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        temperature: float,
    ) -> None:
        self.states = states.to(dtype)
        self.weight = weight
        self.bias = bias
        self.dtype = dtype
        self.wide_dtype = torch.promote_types(dtype, torch.float32)
        self.temperature = temperature

    def least_lse(self) -> torch.Tensor:
        """The log-sum-exp of no logits, ``(positions,)``."""
        return self.states.new_full((len(self.states),), -torch.inf, dtype=self.wide_dtype)

    def chunks(self, chunk_size: int) -> Iterator[slice]:
        """The rows of the vocabulary, some at a time."""
        for start in range(0, len(self.weight), chunk_size):
            yield slice(start, min(start + chunk_size, len(self.weight)))

    def rows(self, rows: slice) -> torch.Tensor:
        """Rows of the weight in the dtype of the multiplication."""
        return self.weight[rows].to(self.dtype)

    def logits(self, rows: slice) -> torch.Tensor:
        """Logits over the temperature ``(positions, rows)``, float32; nobody else holds them."""
        with torch.autocast(self.states.device.type, enabled=False):
            logits = (self.states @ self.rows(rows).T).to(self.wide_dtype)
        if self.bias is not None:
            logits += self.bias[rows]
        return logits.div_(self.temperature)


class _DecoderGradients:
    """Sums up, chunk by chunk, the gradients of what logits are made from.

    Gradients of logits are differences of probabilities. They are scaled only after they were multiplied: divided by
    the tokens of a batch before, they would underflow in fp16.
    """

    def __init__(self, decoder: _Decoder, needed: tuple[bool, bool, bool], scale: torch.Tensor) -> None:
        self.decoder = decoder
        self.scale = scale
        states, weight, bias = decoder.states, decoder.weight, decoder.bias
        self.states = torch.zeros_like(states, dtype=decoder.wide_dtype) if needed[0] else None
        self.weight = torch.empty_like(weight) if needed[1] else None
        self.bias = torch.empty_like(bias) if needed[2] and bias is not None else None

    def add(self, rows: slice, logits: torch.Tensor) -> None:
        """Count the gradient of some rows' logits, ``(positions, rows)``."""
        narrow = logits.to(self.decoder.dtype)
        with torch.autocast(narrow.device.type, enabled=False):
            if self.states is not None:
                self.states += narrow @ self.decoder.rows(rows)
            if self.weight is not None:
                self.weight[rows] = (narrow.T @ self.decoder.states).to(self.decoder.wide_dtype) * self.scale
            if self.bias is not None:
                self.bias[rows] = logits.sum(0) * self.scale

    def result(self) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Gradients of states, weight and bias; ``None`` for those that need none."""
        return (None if self.states is None else self.states * self.scale), self.weight, self.bias
