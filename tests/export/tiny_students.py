"""Tiny students with weights large enough that rounding them shows."""

import torch

from kdnas_hf import (
    KDNASConfig,
    KDNASForMaskedLM,
    KDNASForQuestionAnswering,
    KDNASForSequenceClassification,
    KDNASForTokenClassification,
    KDNASModel,
)
from tiny_teacher import WORDS

CLASSES = {
    "encoder": KDNASModel,
    "masked_lm": KDNASForMaskedLM,
    "sequence": KDNASForSequenceClassification,
    "token": KDNASForTokenClassification,
    "question": KDNASForQuestionAnswering,
}


def make_student(kind="encoder", **config):
    values = {
        "vocab_size": len(WORDS) + 5,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 66,
        "pad_token_id": 1,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLASSES[kind](KDNASConfig(**values | config))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(4)
    return model.eval()
