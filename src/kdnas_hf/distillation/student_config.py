"""The configuration of a teacher's student, and the teacher's own shape."""

from __future__ import annotations

from ..students import Architecture, KDNASConfig
from .teacher import Teacher


def student_config(teacher: Teacher, architecture: Architecture) -> KDNASConfig:
    """Configuration of a student of a teacher: its shape, the teacher's vocabulary and special tokens."""
    tokenizer = teacher.tokenizer
    return architecture.to_config(
        vocab_size=teacher.embeddings.vocab_size,
        pad_token_id=tokenizer.pad_token_id,
        # what layers compute that are copied from the teacher's
        layer_norm_eps=getattr(teacher.model.config, "layer_norm_eps", 1e-5),
        position_padding_idx=None if tokenizer.pad_token_id <= 1 else 1,
        bos_token_id=tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id,
        eos_token_id=tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id,
    )


def teacher_shape(teacher: Teacher) -> Architecture:
    """The teacher's own shape."""
    config = teacher.model.config
    return Architecture(
        num_hidden_layers=teacher.dimensions.num_layers,
        num_attention_heads=config.num_attention_heads,
        hidden_size=teacher.dimensions.hidden_size,
        intermediate_size=config.intermediate_size,
        hidden_act=config.hidden_act,
    )
