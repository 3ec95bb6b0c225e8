"""Models of a given shape with random weights: latency depends on the shape alone."""

from __future__ import annotations

import copy
import inspect

from transformers import PretrainedConfig, PreTrainedModel

from ..utils.random_state import drawing

STAND_IN_VOCABULARY = 1024


def stand_in(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Build an encoder of ``config``'s shape for latency measurements.

    The vocabulary is cut to 1,024 rows where the special tokens allow it: looking up a few rows costs microseconds
    whatever the size of the table, while a table of 250,002 rows takes hundreds of megabytes and seconds to make.

    Args:
        model_class: Class of the encoder.
        config: Its configuration, left as it is.

    Returns:
        The model in float32 and eval mode, without a pooling layer.
    """
    config = copy.deepcopy(config)
    special = [
        getattr(config, name, None) or 0
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    ]
    if max(special) < STAND_IN_VOCABULARY < config.vocab_size:
        config.vocab_size = STAND_IN_VOCABULARY
    keywords = {}
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        keywords["add_pooling_layer"] = False
    with drawing(0):
        model = model_class(config, **keywords)
    return model.float().eval()
