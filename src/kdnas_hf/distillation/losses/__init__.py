"""Losses that a student learns by: one file for each, found by the name that it is registered under."""

from .arguments import LossArguments
from .attention_maps import attention_map_loss
from .base import (
    LOSSES,
    Loss,
    LossSetting,
    Measure,
    agreement_of,
    describe_losses,
    first_loss,
    parse_losses,
    register_loss,
)
from .cosine import cosine_loss
from .hidden_states import ExplainedVariance, hidden_state_loss
from .labels import label_loss
from .logits import logit_loss
from .masked_lm import masked_lm_loss
from .relations import common_relation_heads, relation_loss
from .sentence_vectors import sentence_vector_loss
from .soft_labels import soft_label_loss

__all__ = [
    "LOSSES",
    "ExplainedVariance",
    "Loss",
    "LossArguments",
    "LossSetting",
    "Measure",
    "agreement_of",
    "attention_map_loss",
    "common_relation_heads",
    "cosine_loss",
    "describe_losses",
    "first_loss",
    "hidden_state_loss",
    "label_loss",
    "logit_loss",
    "masked_lm_loss",
    "parse_losses",
    "register_loss",
    "relation_loss",
    "sentence_vector_loss",
    "soft_label_loss",
]
