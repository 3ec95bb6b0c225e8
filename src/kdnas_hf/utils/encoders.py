"""Encoders from the Hub or a local path: what they are, and loading them without a head."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

_NO_ENCODER = "{}={!r} ({}) {}; choose a bidirectional encoder such as FacebookAI/xlm-roberta-base."


def encoder_config(name_or_path: str, revision: str | None, field: str = "teacher") -> PretrainedConfig:
    """The configuration of an encoder; errors call ``name_or_path`` ``field``.

    Raises:
        ValueError: If there is none, or it is that of a decoder.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path, revision=revision)
    except (OSError, ValueError) as error:
        remedy = "name a Hub id or a local directory with a config.json"
        said = " ".join(str(error).split())
        raise ValueError(f"{field}={name_or_path!r} cannot be loaded; {remedy}. The loader said: {said}") from error
    for flag, kind in (("is_encoder_decoder", "an encoder-decoder"), ("is_decoder", "a decoder")):
        if getattr(config, flag, False):
            raise ValueError(_NO_ENCODER.format(field, name_or_path, config.model_type, f"is {kind}"))
    return config


def load_encoder(name_or_path: str, config: PretrainedConfig, revision: str | None) -> PreTrainedModel:
    """Load a model without any head; also without a pooler, where its class lets that be left out."""
    model_class = AutoModel._model_mapping.get(type(config), None)
    pools = inspect.isclass(model_class) and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    keywords: dict[str, Any] = {"add_pooling_layer": False} if pools else {}
    return AutoModel.from_pretrained(name_or_path, revision=revision, dtype=torch.float32, **keywords)


@torch.no_grad()
def check_sees_both_ways(name_or_path: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless the first token's state depends on the last token, as in any masked language model."""
    if model.config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return
    model.eval()
    ordinary = [i for i in range(min(len(tokenizer), 200)) if i not in tokenizer.all_special_ids][-4:]
    ids = torch.tensor([ordinary, [*ordinary[:-1], ordinary[0]]])
    states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
    if torch.allclose(states[0], states[1]):
        raise ValueError(
            _NO_ENCODER.format("teacher", name_or_path, model.config.model_type, "reads in one direction only")
        )
