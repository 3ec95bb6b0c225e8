"""Students as stock XLM-RoBERTa checkpoints, which need no code of ours, and back."""

from __future__ import annotations

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

from . import modeling_kdnas
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
# fields that mean the same in both configurations
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
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def why_not_native(config: KDNASConfig) -> str | None:
    """Why a student of this configuration is no XLM-RoBERTa of another size, in a sentence; None if it is one."""
    if not config.is_homogeneous:
        names = ("num_attention_heads", "intermediate_size", "hidden_act")
        differing = next(name for name in names if isinstance(getattr(config, name), list))
        return f"{differing}={getattr(config, differing)} differs between layers, and XLM-RoBERTa has one for all."
    if config.is_factorised:
        return (
            f"embedding_size={config.embedding_size} is not hidden_size={config.hidden_size}, and XLM-RoBERTa has no "
            "factorised embeddings."
        )
    if config.first_position != config.pad_token_id + 1:
        return (
            f"position_padding_idx={config.position_padding_idx} is not pad_token_id={config.pad_token_id}, from which "
            "XLM-RoBERTa counts positions."
        )
    return None


def to_native(model: KDNASPreTrainedModel) -> PreTrainedModel:
    """Make a stock XLM-RoBERTa of a student: the same outputs, the same head.

    The weights are copies, in the student's dtype, on its device, in its mode.

    Args:
        model: A student, with or without a head.

    Returns:
        The `XLMRoberta…` of the same kind. One without a head has no pooler; `AutoModel` makes a new one when it loads
        the checkpoint, so use its hidden states and not its ``pooler_output``.

    Raises:
        ValueError: If the student's shape or class has no counterpart.
    """
    reason = why_not_native(model.config)
    if reason is not None:
        raise ValueError(f"the student cannot be a stock checkpoint: {reason} Publish it with its code.")
    native_class = NATIVE_CLASSES.get(type(model))
    if native_class is None:
        raise ValueError(f"{type(model).__name__} has no counterpart in XLM-RoBERTa.")
    config = _convert_config(model.config, XLMRobertaConfig)
    if native_class is XLMRobertaForQuestionAnswering:
        config.num_labels = 2  # start and end, which that head is told and ours knows
    return _convert(model, native_class, config, {"kdnas.": "roberta."})


def from_native(model: PreTrainedModel) -> KDNASPreTrainedModel:
    """Make a student of an XLM-RoBERTa: the way back from `to_native`. A pooler is left out.

    Raises:
        ValueError: If it is no XLM-RoBERTa with one of a student's heads.
    """
    classes = {native: own for own, native in NATIVE_CLASSES.items()}
    own_class = classes.get(type(model))
    if own_class is None:
        raise ValueError(f"{type(model).__name__} is none of {', '.join(native.__name__ for native in classes)}.")
    config = _convert_config(model.config, KDNASConfig)
    converted = _convert(model, own_class, config, {"roberta.": "kdnas."})
    assert isinstance(converted, KDNASPreTrainedModel)
    return converted


def write_native_checkpoint(student: str | Path, folder: str | Path) -> PreTrainedModel:
    """Convert a saved student, with the head that it was saved with, to a stock checkpoint with its tokenizer.

    Args:
        student: The student's directory.
        folder: Where the checkpoint is written.

    Returns:
        The stock model.

    Raises:
        ValueError: If the student's shape or class has no counterpart.
    """
    source, target = Path(student), Path(folder)
    config = AutoConfig.from_pretrained(source)
    if not isinstance(config, KDNASConfig):
        raise ValueError(f"{source} holds a {config.model_type!r}, no student.")
    (name, *_) = config.architectures or ["KDNASModel"]
    own_class: Any = getattr(modeling_kdnas, name, None)
    if own_class is None:
        raise ValueError(f"{source} holds a {name}, which is no class of a student.")
    reason = why_not_native(config)
    if reason is not None:  # before the weights are read
        raise ValueError(f"the student cannot be a stock checkpoint: {reason} Publish it with its code.")
    native = to_native(own_class.from_pretrained(source, dtype="auto"))
    native.save_pretrained(target)
    for file in TOKENIZER_FILES:
        if (source / file).is_file():
            shutil.copyfile(source / file, target / file)
    return native


def _convert_config(config: PretrainedConfig, kind: type[PretrainedConfig]) -> Any:
    values = {name: getattr(config, name) for name in SHARED_FIELDS if hasattr(config, name)}
    return kind(**values)


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


__all__ = ["from_native", "to_native", "why_not_native", "write_native_checkpoint"]
