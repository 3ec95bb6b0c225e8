"""The teacher: a frozen encoder and its dimensions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import EMBEDDED_TEACHER_NAME, embedded_teacher
from ..students import TeacherEmbeddings
from ..students.task_heads import MASKED_LM, check_head, has_task_head, load_head, task_head_of
from ..utils.attention import eager_attention, find_attention_projections, record_projections
from ..utils.decoders import teacher_decoder_inputs
from ..utils.dimensions import TeacherDimensions
from ..utils.encoders import check_sees_both_ways, encoder_config, load_encoder
from ..utils.sentence_head import SentenceHead
from ..utils.tokenizers import load_tokenizer
from .teacher_outputs import Required, TeacherOutputs

EMBEDDED = "embedded"  # what arguments call the embedded teacher


class Teacher:
    """A frozen encoder in eval mode whose outputs are targets.

    How it computes (dtype, attention) is a matter of each call: what was given stays as it is.

    Args:
        model: An encoder without a head, or with one for a task's classes; it is frozen and put in eval mode.
        tokenizer: Its fast tokenizer; students share it.
        name: What reports and cards call it.
        masked_lm: The masked language model of which ``model`` is the encoder, for losses on its predictions.
        task_model: The fine-tuned model of which it is the encoder, if it is not that itself, for losses on classes.
        sentence_head: What makes a sentence vector of its last states, where it is a model of sentences.

    Raises:
        ValueError: If ``model`` is not the encoder of ``task_model``, or that classifies neither texts nor tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str | None = None,
        masked_lm: PreTrainedModel | None = None,
        task_model: PreTrainedModel | None = None,
        sentence_head: SentenceHead | None = None,
    ) -> None:
        if task_model is None and has_task_head(model):
            task_model = model
        if task_model is not None:
            task_head_of(task_model)  # raises where it has none
            if model is not task_model and model is not task_model.base_model:
                kind = type(task_model).__name__
                raise ValueError(f"model is not the encoder of task_model ({kind}); give that alone.")
            model = cast(PreTrainedModel, task_model.base_model)
        self.model, self.masked_lm, self.task_model = model, masked_lm, task_model
        self.sentence_head = sentence_head
        for frozen in (model, masked_lm, task_model, sentence_head):
            if frozen is not None:
                frozen.requires_grad_(False).eval()
        if tokenizer.padding_side != "right":  # absolute positions would depend on what a text is batched with
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.padding_side = "right"
        self.tokenizer = tokenizer
        self.name = name or model.config._name_or_path
        self.dimensions = TeacherDimensions.from_config(model.config)
        self._copies: dict[torch.dtype, PreTrainedModel] = {}

    @cached_property
    def embeddings(self) -> TeacherEmbeddings:
        """The word and position embeddings that students inherit, with their principal basis."""
        return TeacherEmbeddings.from_teacher(self.model)

    @property
    def prompts(self) -> dict[str, str]:
        """What may stand before a text, by what the text is for; empty where it is no model of sentences."""
        return {} if self.sentence_head is None else self.sentence_head.prompts

    @property
    def device(self) -> torch.device:
        """Where the teacher computes."""
        return self.model.device

    @property
    def _whole(self) -> PreTrainedModel:
        """The model with its head, if it has one."""
        return self.task_model or self.masked_lm or self.model

    def to(self, device: torch.device | str) -> Teacher:
        """Move the teacher, and return it."""
        for model in (self._whole, *self._copies.values(), self.sentence_head):
            if model is not None:
                cast(nn.Module, model).to(device)
        return self

    def _in(self, dtype: torch.dtype) -> PreTrainedModel:
        """The whole model in a dtype: itself, or a copy that looks words up in the same table."""
        if dtype == self.model.dtype:
            return self._whole
        if dtype not in self._copies:
            # the table is the largest part by far, and what students inherit must not be rounded
            weight = cast(nn.Embedding, self.model.get_input_embeddings()).weight
            made = copy.deepcopy(self._whole, {id(weight): weight})
            for module in made.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None and (parameter is not weight or isinstance(module, nn.Linear)):
                        module._parameters[name] = nn.Parameter(parameter.to(dtype), requires_grad=False)
            words = cast(nn.Module, made.base_model.get_input_embeddings())  # type: ignore[operator]
            words.register_forward_hook(lambda module, inputs, output: output.to(dtype))
            self._copies[dtype] = made
        return self._copies[dtype]

    @torch.no_grad()
    def __call__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        required: Required,
        dtype: torch.dtype | None = None,
        masked: torch.Tensor | None = None,
    ) -> TeacherOutputs:
        """What the teacher says about a batch.

        Args:
            input_ids: ``(batch, sequence)``.
            attention_mask: ``(batch, sequence)``, 1 for real tokens.
            required: What is asked for; by layer, outputs are in ascending order.
            dtype: What the teacher computes in; by default, and for attention maps, that of its weights.
            masked: Positions ``(masked tokens,)`` in the flattened batch, where token logits are asked for.
        """
        whole = self._in(self.model.dtype if dtype is None or required.attention_maps else dtype)
        encoder = cast(PreTrainedModel, whole.base_model)
        outputs = TeacherOutputs()
        encoded: list[Any] = []
        hook = encoder.register_forward_hook(lambda module, inputs, outputs: encoded.append(outputs))
        layers = sorted(required.queries_keys_values)
        projections = find_attention_projections(encoder, self.dimensions.num_layers) if layers else []
        try:
            with (
                torch.autocast(input_ids.device.type, enabled=False),
                eager_attention(encoder, bool(required.attention_maps)),
                record_projections(projections, layers) as outputs.queries_keys_values,
            ):
                made = (whole if required.task_logits else encoder)(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    output_hidden_states=True,
                    output_attentions=bool(required.attention_maps),
                )
        finally:
            hook.remove()
        outputs.task_logits = made.logits if required.task_logits else None
        (made,) = encoded  # of the encoder inside
        states = (*made.hidden_states[: self.dimensions.num_layers], made.last_hidden_state)
        outputs.hidden_states = {layer: states[layer] for layer in sorted(required.hidden_states)}
        if required.sentence_vectors:
            assert self.sentence_head is not None
            outputs.sentence_vectors = self.sentence_head(states[-1], attention_mask)
        outputs.attention_maps = {layer: made.attentions[layer - 1] for layer in sorted(required.attention_maps)}
        if required.token_logits:
            assert masked is not None
            outputs.decoder = teacher_decoder_inputs(whole, states[-1].flatten(0, 1).index_select(0, masked))
        return outputs

    def hidden_states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, layers: Iterable[int]
    ) -> dict[int, torch.Tensor]:
        """Hidden states of some layers, counted from 1: for each ``(batch, sequence, hidden_size)``."""
        return self(input_ids, attention_mask, Required(hidden_states=frozenset(layers))).hidden_states


def load_teacher(
    name_or_path: str,
    revision: str | None = None,
    head: str | None = None,
    check: Callable[[TeacherDimensions], None] | None = None,
) -> Teacher:
    """Load any encoder from the Hub or a local path as a teacher, with what makes its sentence vectors, if it has it.

    Args:
        name_or_path: Hub id or local directory of a BERT-like encoder, with or without a head; or ``embedded``, the
            teacher that comes with the extra ``demo``.
        revision: Branch, tag or commit on the Hub.
        head: A head to load as well: ``masked_lm``, ``sequence_classification``, ``token_classification``, or ``task``
            for whichever of the two it has.
        check: Called with the teacher's dimensions before its weights are loaded.

    Raises:
        ValueError: If the model is not a bidirectional encoder, or has no fast tokenizer, or lacks the head.
    """
    name = name_or_path
    if name_or_path == EMBEDDED:
        name, name_or_path, revision = EMBEDDED_TEACHER_NAME, str(embedded_teacher()), None
    config = encoder_config(name_or_path, revision)
    if check is not None:
        check(TeacherDimensions.from_config(config))
    if head is not None:
        head = check_head(name_or_path, config, head)
    tokenizer = load_tokenizer(name_or_path, revision)
    sentence_head = SentenceHead.load(name_or_path, revision)
    whole = load_head(name_or_path, revision, head) if head else None
    model = cast(PreTrainedModel, whole.base_model) if whole else load_encoder(name_or_path, config, revision)
    check_sees_both_ways(name_or_path, model, tokenizer)
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if len(tokenizer) > rows:
        difference = f"the tokenizer has {len(tokenizer)} tokens, the model only {rows} embeddings"
        raise ValueError(f"teacher={name_or_path!r}: {difference}; they do not belong together.")
    parts = {"masked_lm" if head == MASKED_LM else "task_model": whole}
    return Teacher(model, tokenizer, name=name, sentence_head=sentence_head, **parts)
