"""What a student learns from its teacher: one file for each loss."""

from .attention_maps import attention_map_loss
from .hidden_states import PROJECTIONS, ExplainedVariance, HiddenStateProjections, cosine_loss, hidden_state_loss
from .masked_lm import DecoderInputs, decoder_inputs, logit_loss, masked_lm_loss, teacher_decoder_inputs
from .relations import common_relation_heads, relation_loss
from .specification import LOSS_SPECIFICATIONS, LOSSES, LossSpecification, parse_losses
from .task_labels import label_loss, soft_label_loss

__all__ = [
    "LOSSES",
    "LOSS_SPECIFICATIONS",
    "PROJECTIONS",
    "DecoderInputs",
    "ExplainedVariance",
    "HiddenStateProjections",
    "LossSpecification",
    "attention_map_loss",
    "common_relation_heads",
    "cosine_loss",
    "decoder_inputs",
    "hidden_state_loss",
    "label_loss",
    "logit_loss",
    "masked_lm_loss",
    "parse_losses",
    "relation_loss",
    "soft_label_loss",
    "teacher_decoder_inputs",
]
