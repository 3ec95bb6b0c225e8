"""The teacher: a frozen encoder, its dimensions, and the statistics of its hidden states."""

from __future__ import annotations

import copy
import inspect
import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from optimum.utils import NormalizedConfigManager
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorWithPadding,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from ..data import EMBEDDED_TEACHER_NAME, embedded_teacher
from ..students import TeacherEmbeddings
from .attention_projections import AttentionProjections, find_attention_projections
from .numbered_texts import TEXT_NUMBER, NumberedTexts
from .task_head import has_task_head, load_task_model, load_with_head, task_head_of

if TYPE_CHECKING:
    from .state_cache import TeacherStateCache

logger = logging.get_logger(__name__)

EMBEDDED = "embedded"  # what arguments call the embedded teacher
# without tokenizer files, each line of transformers fails in its own way
TOKENIZER_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError)

# kinds of features, see `Teacher.features`
HIDDEN_STATES = "hidden_states"
ATTENTION_INPUT = "attention_input"
ATTENTION_MAPS = "attention_maps"
TASK_LOGITS = "task_logits"


@dataclass(frozen=True)
class TeacherDimensions:
    """Shape of an encoder, whatever its configuration calls the fields."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    vocab_size: int

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> TeacherDimensions:
        """Read the dimensions of any configuration, by Optimum's normalised names where it knows the model type.

        Raises:
            ValueError: If the configuration does not tell a dimension.
        """
        try:
            normalized = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
        except KeyError:
            normalized = config  # a type that Optimum does not list: most use the standard names
        values = {}
        for name, alternative in {
            "num_layers": "num_hidden_layers",
            "hidden_size": "hidden_size",
            "num_attention_heads": "num_attention_heads",
            "vocab_size": "vocab_size",
        }.items():
            value = getattr(normalized, name, None) or getattr(config, alternative, None)
            if not isinstance(value, int):
                raise ValueError(
                    f"the teacher's configuration ({config.model_type}) does not tell {alternative}; "
                    "choose a BERT-like encoder."
                )
            values[name] = value
        return cls(**values)


class Teacher:
    """A frozen encoder in eval mode that gives hidden states as targets.

    Args:
        model: An encoder without a head, or with one for a task's classes. Its parameters are frozen and it is put in
            eval mode.
        tokenizer: Its fast tokenizer; students share it.
        name: What reports and cards call it.
        dtype: What it computes in. The word embeddings that students inherit stay float32 whatever this is.
        masked_lm: The masked language model of which ``model`` is the encoder, for losses on its predictions.
        task_model: The fine-tuned model of which ``model`` is the encoder, for losses on a task's classes; it need not
            be given where ``model`` is that itself.

    Raises:
        ValueError: If ``model`` is not the encoder of ``task_model``, or that classifies neither texts nor tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str | None = None,
        dtype: torch.dtype = torch.float32,
        masked_lm: PreTrainedModel | None = None,
        task_model: PreTrainedModel | None = None,
    ) -> None:
        if task_model is None and has_task_head(model):
            task_model = model
        if task_model is not None:
            task_head_of(task_model)  # raises where it has none
            if model is not task_model and model is not task_model.base_model:
                raise ValueError(
                    f"model is not the encoder of task_model ({type(task_model).__name__}); give that alone."
                )
            model = cast(PreTrainedModel, task_model.base_model)
        self.model = model.requires_grad_(False).eval()
        self.masked_lm = masked_lm.requires_grad_(False).eval() if masked_lm is not None else None
        self.task_model = task_model.requires_grad_(False).eval() if task_model is not None else None
        self.tokenizer = tokenizer
        self.name = name or model.config._name_or_path
        self.sharded: nn.Module | None = None  # what to call in place of the model, see `place_teacher`
        self.dimensions = TeacherDimensions.from_config(model.config)
        # as it is deployed: a loss on attention maps makes the teacher attend eagerly, which is slower
        self.deployed_config = copy.deepcopy(model.config)
        if dtype != torch.float32:
            self.to_dtype(dtype)

    @cached_property
    def embeddings(self) -> TeacherEmbeddings:
        """The word and position embeddings that students inherit, with their principal basis."""
        return TeacherEmbeddings.from_teacher(self.model)

    @property
    def device(self) -> torch.device:
        """Where the teacher computes."""
        return self.model.device

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds only a share of it, so that all of them must call it together."""
        return self.sharded is not None

    def to(self, device: torch.device | str) -> Teacher:
        """Move the teacher, and return it. One that is sharded stays where it is."""
        if not self.is_sharded:
            for model in (self.masked_lm, self.task_model, self.model):
                if model is not None:
                    model.to(device)
        return self

    def to_dtype(self, dtype: torch.dtype) -> Teacher:
        """Compute in ``dtype`` from now on, and return the teacher."""
        if dtype == self.model.dtype:
            return self
        if self.is_sharded:
            raise ValueError(f"the teacher is sharded in {self.model.dtype}; set its dtype to {dtype} before that.")
        # students inherit the table as it was before rounding: the model gets a table of its own
        table = self.embeddings.table
        own_table = nn.Embedding.from_pretrained(
            table.detach().to(dtype), freeze=True, padding_idx=self.model.config.pad_token_id
        )
        self.model.set_input_embeddings(own_table)
        if self.masked_lm is not None:
            self.masked_lm.tie_weights()
            self.masked_lm.to(dtype)
        if self.task_model is not None:
            self.task_model.to(dtype)
        self.model.to(dtype)
        return self

    @torch.no_grad()
    def hidden_states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, layers: Iterable[int]
    ) -> dict[int, torch.Tensor]:
        """Hidden states of the given layers.

        Args:
            input_ids: ``(batch, sequence)``.
            attention_mask: ``(batch, sequence)``, 1 for real tokens.
            layers: Layers, counted from 1.

        Returns:
            For each layer ``(batch, sequence, hidden_size)``. The last layer is the model's ``last_hidden_state``,
            after a final norm where the architecture has one.
        """
        features = self.features(input_ids, attention_mask, [f"{HIDDEN_STATES}.{layer}" for layer in layers])
        return {int(name.split(".")[1]): values for name, values in features.items()}

    @torch.no_grad()
    def features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, names: Iterable[str]
    ) -> dict[str, torch.Tensor]:
        """What students learn from, by name.

        Args:
            input_ids: ``(batch, sequence)``.
            attention_mask: ``(batch, sequence)``, 1 for real tokens.
            names: ``hidden_states.<layer>``, the output of a layer; ``attention_input.<layer>``, what the layer's
                queries, keys and values are made from; ``attention_maps.<layer>``, its probabilities (see
                `attend_eagerly`); ``task_logits``, those of a fine-tuned teacher's classes. Layers count from 1.

        Returns:
            For each name ``(batch, sequence, hidden_size)``, for attention maps ``(batch, heads, sequence, sequence)``,
            for a task's logits ``(batch, classes)`` or ``(batch, sequence, classes)``.
            The last layer's output is the model's ``last_hidden_state``, after a final norm where the architecture has
            one.
        """
        names = list(names)
        split = {name: (name.split(".")[0], int(name.split(".")[1])) for name in names if name != TASK_LOGITS}
        attention_inputs: dict[int, torch.Tensor] = {}
        wants_maps = any(kind == ATTENTION_MAPS for kind, _ in split.values())

        def keep(layer: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
            return lambda module, inputs: attention_inputs.__setitem__(layer, inputs[0])

        hooks = [
            self.attention_projections[layer - 1].maps[0].register_forward_pre_hook(keep(layer))
            for kind, layer in split.values()
            if kind == ATTENTION_INPUT
        ]
        encoded: list[Any] = []
        compute = self.model if self.sharded is None else self.sharded
        if TASK_LOGITS in names:
            assert self.task_model is not None
            compute = self.task_model
            hooks.append(self.model.register_forward_hook(lambda module, inputs, outputs: encoded.append(outputs)))
        try:
            with torch.autocast(input_ids.device.type, enabled=False):
                outputs = compute(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    output_hidden_states=True,
                    output_attentions=wants_maps,
                )
        finally:
            for hook in hooks:
                hook.remove()
        found = {}
        if TASK_LOGITS in names:
            found[TASK_LOGITS] = outputs.logits
            (outputs,) = encoded  # of the encoder inside
        hidden_states = (*outputs.hidden_states[: self.dimensions.num_layers], outputs.last_hidden_state)
        for name, (kind, layer) in split.items():
            if kind == ATTENTION_INPUT:
                found[name] = attention_inputs[layer]
            else:
                found[name] = outputs.attentions[layer - 1] if kind == ATTENTION_MAPS else hidden_states[layer]
        return found

    def attend_eagerly(self) -> None:
        """Compute attention in plain operations from now on, which alone gives attention maps."""
        self.model.set_attn_implementation("eager")

    @cached_property
    def attention_projections(self) -> list[AttentionProjections]:
        """Each layer's maps to queries, keys and values, first layer first."""
        return find_attention_projections(self.model, self.dimensions.num_layers)


def load_teacher(
    name_or_path: str,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    masked_lm_head: bool = False,
    task_head: str | None = None,
) -> Teacher:
    """Load any encoder from the Hub or a local path as a teacher.

    Args:
        name_or_path: Hub id or local directory of a BERT-like encoder, with or without a head; or ``embedded``, the
            teacher that comes with the extra ``demo``.
        dtype: What the teacher computes in.
        revision: Branch, tag or commit on the Hub.
        masked_lm_head: Load its masked language modeling head as well, for the loss ``logits``.
        task_head: Load its head for a task's classes as well, ``sequence_classification`` or ``token_classification``,
            for the loss ``soft_labels``.

    Raises:
        ValueError: If the model is no bidirectional encoder, or has no fast tokenizer, or lacks the head.
    """
    name = name_or_path
    if name_or_path == EMBEDDED:
        name, name_or_path, revision = EMBEDDED_TEACHER_NAME, str(embedded_teacher()), None
    try:
        config = AutoConfig.from_pretrained(name_or_path, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"teacher={name_or_path!r} cannot be loaded; name a Hub id or a local directory with a config.json. "
            f"The loader said: {error}"
        ) from error
    _refuse_non_encoders(name_or_path, config)
    tokenizer = _load_tokenizer(name_or_path, revision)
    model_class = AutoModel._model_mapping.get(type(config), None) if hasattr(AutoModel, "_model_mapping") else None
    keywords: dict[str, Any] = {}
    if inspect.isclass(model_class) and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        keywords["add_pooling_layer"] = False
    if masked_lm_head and task_head is not None:
        raise ValueError(f"masked_lm_head=True and task_head={task_head!r} do not go together; choose one.")
    masked_lm = _load_masked_lm(name_or_path, revision) if masked_lm_head else None
    task_model = None if task_head is None else load_task_model(name_or_path, config, revision, task_head)
    model: PreTrainedModel
    if task_model is not None:
        model = cast(PreTrainedModel, task_model.base_model)
    elif masked_lm is not None:
        model = cast(PreTrainedModel, masked_lm.base_model)
    else:
        model = AutoModel.from_pretrained(name_or_path, revision=revision, dtype=torch.float32, **keywords)
    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not _sees_both_ways(model, tokenizer):
        raise ValueError(
            f"teacher={name_or_path!r} ({config.model_type}) reads in one direction only; choose a bidirectional "
            "encoder such as FacebookAI/xlm-roberta-base."
        )
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(
            f"teacher={name_or_path!r}: the tokenizer has {len(tokenizer)} tokens, the model only "
            f"{rows} embeddings; they do not belong together."
        )
    return Teacher(model, tokenizer, name=name, dtype=dtype, masked_lm=masked_lm, task_model=task_model)


def _load_masked_lm(name_or_path: str, revision: str | None) -> PreTrainedModel:
    try:
        return load_with_head(AutoModelForMaskedLM, name_or_path, revision)
    except ValueError as error:
        raise ValueError(
            f"teacher={name_or_path!r} has no masked language modeling head ({error}); choose a teacher that has "
            "one, or leave the loss logits out."
        ) from error


def _load_tokenizer(name_or_path: str, revision: str | None) -> PreTrainedTokenizerBase:
    remedy = "save a fast tokenizer beside the model with AutoTokenizer.from_pretrained(…).save_pretrained(…)."
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, revision=revision)
    except TOKENIZER_ERRORS as error:
        raise ValueError(f"teacher={name_or_path!r} has no fast tokenizer that loads ({error}); {remedy}") from error
    # where no file is found, transformers 5 makes an empty tokenizer of the model's kind: special tokens and a space
    if len(tokenizer) <= len(tokenizer.all_special_tokens) + 1:
        raise ValueError(f"teacher={name_or_path!r} has no tokenizer; {remedy}")
    if not tokenizer.is_fast:
        raise ValueError(f"teacher={name_or_path!r} has no fast tokenizer; {remedy}")
    return tokenizer


def _refuse_non_encoders(name_or_path: str, config: PretrainedConfig) -> None:
    if getattr(config, "is_encoder_decoder", False):
        kind = "an encoder-decoder"
    elif getattr(config, "is_decoder", False):
        kind = "a decoder"
    else:
        return
    raise ValueError(
        f"teacher={name_or_path!r} ({config.model_type}) is {kind}; choose a bidirectional encoder such as "
        "FacebookAI/xlm-roberta-base."
    )


@torch.no_grad()
def _sees_both_ways(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the first token's state depends on the last token."""
    model.eval()
    ordinary = [i for i in range(min(len(tokenizer), 200)) if i not in tokenizer.all_special_ids][-4:]
    first = torch.tensor([ordinary])
    second = first.clone()
    second[0, -1] = ordinary[0]
    states = [
        model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, 0] for ids in (first, second)
    ]
    return not torch.allclose(states[0], states[1])


def sample_batches(teacher: Teacher, texts: Any, count: int, batch_size: int, seed: int = 0) -> DataLoader:
    """Batches of a random sample of ``count`` texts, given as ``input_ids`` (and numbers, if any), in order of length.

    Of a stream it is the first ones. A corpus is often ordered by language: its beginning would speak for all languages
    by the first few.
    """
    if isinstance(texts, Sized) and hasattr(texts, "__getitem__"):
        chosen = sorted(random.Random(seed).sample(range(len(texts)), min(count, len(texts))))
        sample: Iterable[Mapping[str, Any]] = (texts[index] for index in chosen)
    else:
        sample = itertools.islice(texts, count)
    columns = ("input_ids", TEXT_NUMBER)
    rows: Any = [{name: row[name] for name in columns if name in row} for row in sample]
    rows.sort(key=lambda row: len(row["input_ids"]))
    return DataLoader(rows, batch_size=batch_size, collate_fn=DataCollatorWithPadding(teacher.tokenizer))


class HiddenStateStatistics:
    """Mean and standard deviation of the teacher's hidden states, per layer and dimension.

    Standardised targets have mean 0 and variance 1 in every dimension, so that no layer and no dimension of huge
    magnitude outweighs the others, and a mean squared error of 1 is what predicting the mean earns.

    Args:
        mean: For each layer ``(hidden_size,)``.
        std: For each layer ``(hidden_size,)``.
    """

    def __init__(self, mean: Mapping[int, torch.Tensor], std: Mapping[int, torch.Tensor]) -> None:
        self.mean = dict(mean)
        self.std = dict(std)

    @classmethod
    def estimate(
        cls,
        teacher: Teacher,
        batches: Iterable[Mapping[str, torch.Tensor]],
        layers: Sequence[int],
        states: TeacherStateCache | None = None,
    ) -> HiddenStateStatistics:
        """Estimate from batches of texts; padding does not count.

        Args:
            teacher: Whose states.
            batches: ``input_ids`` and ``attention_mask``, both ``(batch, sequence)``; their numbers if ``states``.
            layers: Layers, counted from 1.
            states: The teacher's states of these texts, if they are cached already: nothing is computed again.

        Raises:
            ValueError: If there are fewer than two tokens.
        """
        size = teacher.dimensions.hidden_size
        count = 0
        total = {layer: torch.zeros(size, dtype=torch.float64) for layer in layers}
        square = {layer: torch.zeros(size, dtype=torch.float64) for layer in layers}
        for batch in batches:
            if states is not None:
                cached = states.states(batch[TEXT_NUMBER])
                real = {layer: cached[f"{HIDDEN_STATES}.{layer}"] for layer in layers}
            else:
                mask = batch["attention_mask"].to(teacher.device)
                computed = teacher.hidden_states(batch["input_ids"].to(teacher.device), mask, layers)
                real = {layer: values[mask.bool()] for layer, values in computed.items()}
            count += int(batch["attention_mask"].sum())
            for layer, values in real.items():
                exact = values.float().cpu().double()  # not every accelerator has float64
                total[layer] += exact.sum(0)
                square[layer] += exact.square().sum(0)
        if count < 2:
            raise ValueError("the teacher's statistics need at least two tokens of training text.")
        mean = {layer: total[layer] / count for layer in layers}
        # a dimension in which the teacher is constant is left unscaled rather than blown up
        variance = {layer: (square[layer] / count - mean[layer].square()).clamp_min(0) for layer in layers}
        std = {layer: torch.where(variance[layer] > 1e-12, variance[layer].sqrt(), 1.0) for layer in layers}
        return cls({k: v.float() for k, v in mean.items()}, {k: v.float() for k, v in std.items()})

    @classmethod
    def from_texts(
        cls,
        teacher: Teacher,
        texts: Iterable[Mapping[str, Any]],
        layers: Sequence[int],
        count: int,
        batch_size: int,
        seed: int = 0,
        states: TeacherStateCache | None = None,
    ) -> HiddenStateStatistics:
        """Estimate from a random sample of ``count`` texts, see `sample_batches` and `estimate`."""
        numbered = texts if states is None else NumberedTexts(texts)
        batches = sample_batches(teacher, numbered, count, batch_size, seed)
        return cls.estimate(teacher, batches, layers, states)

    def to(self, device: torch.device | str) -> HiddenStateStatistics:
        """Return the statistics on a device."""
        return HiddenStateStatistics(
            {layer: value.to(device) for layer, value in self.mean.items()},
            {layer: value.to(device) for layer, value in self.std.items()},
        )

    def standardize(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        """Standardise states ``(…, hidden_size)`` of a layer, in float32."""
        return (states.float() - self.mean[layer]) / self.std[layer]

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file."""
        tensors = {f"mean.{layer}": value.contiguous().cpu() for layer, value in self.mean.items()}
        tensors.update({f"std.{layer}": value.contiguous().cpu() for layer, value in self.std.items()})
        save_file(tensors, str(path))

    @classmethod
    def load(cls, path: str | Path) -> HiddenStateStatistics:
        """Read from a file that `save` wrote."""
        parts: dict[str, dict[int, torch.Tensor]] = {"mean": {}, "std": {}}
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safe_open handle is no mapping)
                part, layer = name.split(".")
                # a copy: the tensor would else live in the file, which goes when its checkpoint is rotated
                parts[part][int(layer)] = file.get_tensor(name).clone()
        return cls(parts["mean"], parts["std"])
