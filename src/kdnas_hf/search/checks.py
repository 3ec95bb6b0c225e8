"""What is checked before a search begins, so that nothing fails late."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..distillation import DistillationTrainingArguments, Teacher, resolve_layer_mapping
from ..export import get_backend, require_runtime
from ..run_directory import refuse_other_run
from ..students import KDNASConfig, read_teacher_layers
from ..students.vocabulary_trimming import check_trimmable
from .arguments import SearchArguments
from .configuration import resolve_configuration
from .space import Architecture, SearchSpace
from .storage import open_storage


def student_config(teacher: Teacher, architecture: Architecture) -> KDNASConfig:
    """Configuration of a student of a teacher: its shape, the teacher's vocabulary and special tokens."""
    tokenizer = teacher.tokenizer
    return architecture.to_config(
        vocab_size=teacher.model.get_input_embeddings().weight.shape[0],
        pad_token_id=tokenizer.pad_token_id,
        position_padding_idx=None if tokenizer.pad_token_id <= 1 else 1,
        bos_token_id=tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id,
        eos_token_id=tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id,
    )


def check_search(
    teacher: Teacher,
    space: SearchSpace,
    args: SearchArguments,
    training_args: DistillationTrainingArguments,
    configuration: Mapping[str, Any] | None = None,
) -> list[int]:
    """Check what can be checked before any text is read.

    Args:
        teacher: The teacher.
        space: The search space.
        args: Of the search.
        training_args: Of every distillation.
        configuration: What else the result depends on; given, the output directory is checked as well.

    Returns:
        The teacher's layers that some architecture of the space learns from.

    Raises:
        ImportError: If the backend whose latency counts is not installed.
        ValueError: If a layer mapping does not fit, a latency cannot be measured, a tokenizer that is to be trimmed
            cannot be, or the output directory holds another run.
    """
    require_runtime(get_backend(args.latency_backend).runtime)
    if args.trim_vocabulary:
        check_trimmable(teacher.tokenizer)
    if "hidden_states" not in training_args.loss_weights:
        raise ValueError(
            f"losses={training_args.losses!r} leaves out hidden_states, but the reward of a search is made "
            "of its R²; add it, with a small weight if need be."
        )
    if training_args.relation_teacher_layer > teacher.dimensions.num_layers:
        raise ValueError(
            f"relation_teacher_layer={training_args.relation_teacher_layer}: the teacher has layers 1 to "
            f"{teacher.dimensions.num_layers}."
        )
    if "logits" in training_args.loss_weights and teacher.masked_lm is None:
        raise ValueError("losses: 'logits' needs a teacher that is loaded with masked_lm_head=True.")
    if training_args.student_init == "teacher":
        read_teacher_layers(teacher.model)  # raises where layers of this kind cannot be copied
    mappings = [
        resolve_layer_mapping(training_args.layer_mapping, depth, teacher.dimensions.num_layers)
        for depth in space.num_hidden_layers
    ]
    sequence = args.latency_sequence_length
    example = student_config(teacher, example_of(space))
    check_length(f"latency_sequence_length={sequence} is too long; choose", sequence, example)
    if configuration is not None:
        resolved = resolve_configuration(teacher, space, args, training_args, texts=None, extra=configuration)
        refuse_other_run(Path(training_args.output_dir or "runs"), resolved, resume=args.resume)
        if args.storage is not None and training_args.process_index == 0:
            open_storage(args.storage)
    return sorted({pair.teacher for mapping in mappings for pair in mapping})


def example_of(space: SearchSpace) -> Architecture:
    """Any member of a space."""
    return space.sample(random.Random(0), 1)[0]


def check_length(complaint: str, tokens: int, config: KDNASConfig) -> None:
    """Refuse a text that is longer than a student can read."""
    if tokens > config.max_tokens:
        raise ValueError(f"{complaint} at most {config.max_tokens}: a student has no more positions.")
