"""Students as stock XLM-RoBERTa checkpoints, which need no code of ours, and back."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaModel,
)

from .configuration_kdnas import KDNASConfig
from .modeling_kdnas import (
    KDNASForMaskedLM,
    KDNASForQuestionAnswering,
    KDNASForSequenceClassification,
    KDNASForTokenClassification,
    KDNASModel,
    KDNASPreTrainedModel,
)

NATIVE_CLASSES: dict[type[KDNASPreTrainedModel], type[PreTrainedModel]] = {
    KDNASModel: XLMRobertaModel,
    KDNASForMaskedLM: XLMRobertaForMaskedLM,
    KDNASForSequenceClassification: XLMRobertaForSequenceClassification,
    KDNASForTokenClassification: XLMRobertaForTokenClassification,
    KDNASForQuestionAnswering: XLMRobertaForQuestionAnswering,
}
# fields that mean the same in both configurations; positions are moved where they count from another row
SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "id2label",
    "label2id",
    "problem_type",
)
# what a tokenizer may consist of
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def why_not_native(config: KDNASConfig) -> str | None:
    """Why a student of this configuration is no XLM-RoBERTa of another size, in a sentence; None if it is one.

    Positions that do not count from the padding token are no obstacle, as long as moving the rows of their table at
    most doubles it.
    """
    if not config.is_homogeneous:
        names = ("num_attention_heads", "intermediate_size", "hidden_act")
        differing = next(name for name in names if isinstance(getattr(config, name), list))
        return f"{differing}={getattr(config, differing)} differs between layers, and XLM-RoBERTa has one for all."
    if config.is_factorised:
        return (
            f"embedding_size={config.embedding_size} is not hidden_size={config.hidden_size}, and XLM-RoBERTa has no "
            "factorised embeddings."
        )
    if config.pad_token_id + 1 - config.first_position > config.max_position_embeddings:
        return (
            f"position_padding_idx={config.position_padding_idx} is far from pad_token_id={config.pad_token_id}, from "
            "which XLM-RoBERTa counts positions: most rows of the position embeddings would be empty."
        )
    return None


def to_native(model: KDNASPreTrainedModel) -> PreTrainedModel:
    """Make a stock XLM-RoBERTa of a student: the same outputs, the same head.

    The weights are copies, so that either model may be trained or moved without the other; the student is not changed.
    They keep its dtype, its device, its mode (training or not) and its attention implementation. If the student counts
    positions from another row than the padding token's, rows of the position embeddings are moved: outputs are the same
    for the positions that models number themselves, but `position_ids` that a caller gives mean other rows. A stock
    head that classifies texts reads position 0: its logits are the student's where padding stands behind the texts.

    Args:
        model: A student, with or without a head.

    Returns:
        The `XLMRoberta…` of the same kind. One without a head has no pooler. `AutoModel` draws a new one when it loads
        the checkpoint, and says so; use its hidden states and not its ``pooler_output``, or load with
        ``add_pooling_layer=False``. A question answering head has the two labels that XLM-RoBERTa's must have.

    Raises:
        ValueError: If the student's shape or class has no counterpart.
    """
    reason = why_not_native(model.config)
    if reason is not None:
        raise ValueError(f"the student cannot be a stock checkpoint: {reason} Publish it with its code.")
    native_class = NATIVE_CLASSES.get(type(model))
    if native_class is None:
        names = ", ".join(own.__name__ for own in NATIVE_CLASSES)
        raise ValueError(f"{type(model).__name__} has no counterpart in XLM-RoBERTa; choose from {names}.")
    config = _convert_config(model.config, XLMRobertaConfig, native_class)
    if native_class is XLMRobertaForQuestionAnswering:
        config.num_labels = 2  # start and end, which that head is told and ours knows
    return _convert(model, native_class, config, {"kdnas.": "roberta."})


def from_native(model: PreTrainedModel, position_padding_idx: int | None = None) -> KDNASPreTrainedModel:
    """Make a student of an XLM-RoBERTa: the way back from `to_native`. A pooler is left out.

    Args:
        model: An `XLMRobertaModel`, or one with a student's kind of head.
        position_padding_idx: Row from which the student counts positions, see `KDNASConfig`; by default that of the
            padding token, as in XLM-RoBERTa.

    Returns:
        The student, with copies of the weights.

    Raises:
        ValueError: If it is no XLM-RoBERTa with one of a student's heads, or one that is no plain encoder.
    """
    classes = {native: own for own, native in NATIVE_CLASSES.items()}
    own_class = classes.get(type(model))
    if own_class is None:
        names = ", ".join(native.__name__ for native in classes)
        raise ValueError(f"{type(model).__name__} is none of {names}.")
    for name, only in (("is_decoder", False), ("position_embedding_type", "absolute")):  # the latter in transformers 4
        value = getattr(model.config, name, only)
        if value != only:
            raise ValueError(f"{name}={value!r} is nothing that a student can do; only {name}={only!r} becomes one.")
    config = _convert_config(model.config, KDNASConfig, own_class, position_padding_idx)
    converted = _convert(model, own_class, config, {"roberta.": "kdnas."})
    assert isinstance(converted, KDNASPreTrainedModel)
    return converted


def write_native_checkpoint(student: str | Path, folder: str | Path) -> PreTrainedModel:
    """Convert a saved student, with the head that it was saved with, to a stock checkpoint with its tokenizer.

    Nothing else is written: no code, no state of a training. The checkpoint and its tokenizer, which pads on the right,
    load on transformers 4 and 5, whichever wrote the student. A model that was not saved is converted by
    ``to_native(model)``.

    Args:
        student: The student's directory.
        folder: Where the checkpoint is written; another directory.

    Returns:
        The stock model.

    Raises:
        ValueError: If the student's shape or class has no counterpart, or both directories are one.
    """
    source, target = Path(student), Path(folder)
    if source.resolve() == target.resolve():
        raise ValueError(f"folder={str(folder)!r} is the student's own directory; choose another.")
    config = AutoConfig.from_pretrained(source)
    if not isinstance(config, KDNASConfig):
        raise ValueError(f"{source} holds a {config.model_type!r}, no student.")
    (name, *_) = config.architectures or ["KDNASModel"]
    own_class: Any = {own.__name__: own for own in NATIVE_CLASSES}.get(name)
    if own_class is None:
        raise ValueError(f"{source} holds a {name}, which is no class of a student.")
    reason = why_not_native(config)
    if reason is not None:  # before the weights are read
        raise ValueError(f"the student cannot be a stock checkpoint: {reason} Publish it with its code.")
    native = to_native(own_class.from_pretrained(source, dtype="auto"))
    # transformers 4 would keep an untied head's bias under one name, and 5 look for it under both
    native.save_pretrained(target, state_dict=_unshared_bias(native))
    copy_tokenizer(source, target, config.max_tokens)
    _pad_on_the_right(target)
    return native


def _unshared_bias(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """State of a model, in which an untied masked language modeling head has its bias twice."""
    state = model.state_dict()
    name = "lm_head.decoder.bias"
    if name in state and not model.config.tie_word_embeddings:
        state[name] = state[name].clone()
    return state


def copy_tokenizer(source: Path, target: Path, max_tokens: int) -> None:
    """Copy a tokenizer's files, its configuration in the words that transformers 4 knows and 5 still reads.

    It truncates to `max_tokens` at most: what loads stock checkpoints takes `max_position_embeddings` for that number
    (sentence-transformers does), which is too large by the rows before the first position.

    Args:
        source: The student's directory.
        target: Where the files are written.
        max_tokens: Tokens of the longest text that the student reads.
    """
    for file in TOKENIZER_FILES:
        if (source / file).is_file():
            shutil.copyfile(source / file, target / file)
    path = target / "tokenizer_config.json"
    if not path.is_file():
        return
    fields = json.loads(path.read_text(encoding="utf-8"))
    changed = dict(fields)
    if changed.get("tokenizer_class") == "TokenizersBackend":
        changed["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(changed.get("extra_special_tokens"), list):  # a dict there means the same in both
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    changed["model_max_length"] = min(changed.get("model_max_length") or max_tokens, max_tokens)
    if changed != fields:
        path.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _pad_on_the_right(folder: Path) -> None:
    """Have a saved tokenizer pad behind texts: XLM-RoBERTa classifies a text by position 0, padding or not."""
    path = folder / "tokenizer_config.json"
    if path.is_file():
        fields = json.loads(path.read_text(encoding="utf-8")) | {"padding_side": "right"}
        path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _first_position(config: PretrainedConfig) -> int:
    """Row of the position embeddings of the first token."""
    return config.first_position if isinstance(config, KDNASConfig) else config.pad_token_id + 1


def _convert_config(
    config: PretrainedConfig,
    kind: type[PretrainedConfig],
    model_class: type[PreTrainedModel],
    position_padding_idx: int | None = None,
) -> Any:
    """A configuration of the other kind, with as many positions for tokens."""
    values = {name: copy.deepcopy(getattr(config, name)) for name in SHARED_FIELDS if hasattr(config, name)}
    row = values["pad_token_id"] if position_padding_idx is None else position_padding_idx
    if kind is KDNASConfig:
        values["position_padding_idx"] = position_padding_idx
    values["max_position_embeddings"] += row + 1 - _first_position(config)
    converted: Any = kind(**values)
    # as loaded models have them
    if config.architectures:
        converted.architectures = [model_class.__name__]
    converted.dtype = config.dtype
    converted._attn_implementation = config._attn_implementation
    return converted


def _convert(
    model: PreTrainedModel, kind: type[PreTrainedModel], config: PretrainedConfig, prefixes: dict[str, str]
) -> Any:
    """A model of another class with the same parameters, under other prefixes."""
    keywords: dict[str, Any] = {"add_pooling_layer": False} if kind is XLMRobertaModel else {}
    with torch.random.fork_rng(devices=[]):  # its initial weights are drawn in vain
        converted: Any = kind(config, **keywords)
    state = {}
    for name, value in model.state_dict().items():
        for before, after in prefixes.items():
            name = after + name.removeprefix(before) if name.startswith(before) else name
        if name.endswith("embeddings.position_embeddings.weight"):
            value = _move_rows(value, _first_position(config) - _first_position(model.config))
        state[name] = value
    if "lm_head.decoder.bias" in state:  # one bias, which untied heads hold once and tied ones twice
        state["lm_head.bias"] = state["lm_head.decoder.bias"]
    expected = converted.state_dict().keys()
    known = {name: value for name, value in state.items() if name in expected}
    left = [name for name in state if name not in expected and not name.startswith(("pooler.", "lm_head.bias"))]
    missing = [name for name in expected if name not in known]
    if left or missing:
        raise ValueError(f"{type(model).__name__} and {kind.__name__} differ in {sorted([*left, *missing])[0]}.")
    converted = converted.to(dtype=model.dtype, device=model.device)
    converted.load_state_dict(known)
    converted.tie_weights()
    converted.train(model.training)
    return converted


def _move_rows(table: torch.Tensor, by: int) -> torch.Tensor:
    """Put `by` rows of zeros before a table `(rows, size)`, or leave out its first `-by` rows."""
    return torch.cat([table.new_zeros(by, table.shape[1]), table]) if by > 0 else table[-by:]


__all__ = ["copy_tokenizer", "from_native", "to_native", "why_not_native", "write_native_checkpoint"]
