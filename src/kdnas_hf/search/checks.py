"""What is checked before a search begins, so that nothing fails late."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..distillation import DistillationTrainingArguments, Required, Teacher
from ..distillation.pool import required_by
from ..distillation.student_config import student_config
from ..export import get_backend, require_runtime
from ..export.architecture_latencies import costs_of_shapes
from ..latency import shares_of
from ..students import Architecture, KDNASConfig, check_copyable
from ..students.vocabulary_trimming import check_trimmable
from ..utils.dimensions import TeacherDimensions
from ..utils.run_directory import refuse_other_run
from ..utils.shared_storage import open_storage
from .arguments import SearchArguments
from .configuration import resolve_configuration
from .controllers.rules_of_thumb import load_hand_list
from .predicted_budget import PredictedBudget
from .space import SearchSpace


def check_shapes(
    teacher: TeacherDimensions, space: SearchSpace, args: SearchArguments, training_args: DistillationTrainingArguments
) -> None:
    """Check what the teacher's dimensions alone can say, before its weights are loaded.

    Raises:
        ValueError: If a student cannot start as it should, no shape meets the budget, or a list of shapes is wrong.
    """
    shapes = [(size, depth) for size in space.hidden_size for depth in space.num_hidden_layers]
    training_args.start.check(teacher.hidden_size, teacher.num_layers, shapes)
    _check_kept_layers(space, teacher, training_args)
    if args.hand is not None:
        load_hand_list(args.hand, space)
    config = example_of(space).to_config(vocab_size=teacher.vocab_size)
    PredictedBudget(
        space,
        args.budget,
        lambda shapes: costs_of_shapes(shapes, config, args.latency_backend, args.latency_benchmark),
    )


def check_search(
    teacher: Teacher,
    space: SearchSpace,
    args: SearchArguments,
    training_args: DistillationTrainingArguments,
    configuration: Mapping[str, Any] | None = None,
) -> Required:
    """Check what can be checked before any text is read; given a configuration, the output directory as well.

    Returns:
        The teacher outputs that some architecture of the space learns from.

    Raises:
        ImportError: If the backend whose latency counts is not installed.
        ValueError: If a layer mapping does not fit, a latency cannot be measured, a tokenizer that is to be trimmed
            cannot be, or the output directory holds another run.
    """
    require_runtime(get_backend(args.latency_backend).runtime)
    if args.trim_vocabulary:
        check_trimmable(teacher.tokenizer)
    if training_args.warmup_steps:
        raise ValueError(
            f"warmup_steps={training_args.warmup_steps} would be those of a mini-KD and of the full distillation; give "
            "warmup_fraction."
        )
    check_shapes(teacher.dimensions, space, args, training_args)
    if training_args.student_init == "layers":
        check_copyable(teacher.model)
    required = required_by(training_args, teacher, list(space.num_hidden_layers))
    sequence = max(shares_of(args.latency_benchmark.sequence_length))
    example = student_config(teacher, example_of(space))
    check_length(f"latency_sequence_length={sequence} is too long; choose", sequence, example)
    if configuration is not None:
        resolved = resolve_configuration(teacher, space, args, training_args, texts=None, extra=configuration)
        refuse_other_run(Path(training_args.output_dir or "runs"), resolved, resume=args.resume)
        if args.storage is not None and training_args.process_index == 0:
            open_storage(args.storage)
    return required


def example_of(space: SearchSpace) -> Architecture:
    """Any member of a space."""
    return space.sample(random.Random(0), 1)[0]


def _check_kept_layers(
    space: SearchSpace, teacher: TeacherDimensions, training_args: DistillationTrainingArguments
) -> None:
    """Refuse a space whose students keep layers that the teacher cannot give them."""
    if space.teacher_layers is None:
        return
    if set(space.hidden_size) != {teacher.hidden_size}:
        raise ValueError(
            f"teacher_layers={list(space.teacher_layers)} of the search space are copied into students of the "
            f"teacher's width alone; set its hidden_size to [{teacher.hidden_size}], or leave teacher_layers out."
        )
    if max(space.teacher_layers) > teacher.num_layers:
        raise ValueError(
            f"teacher_layers={list(space.teacher_layers)} of the search space: the teacher has layers 1 to "
            f"{teacher.num_layers}."
        )
    if training_args.student_layers or training_args.student_init in ("embeddings", "random"):
        raise ValueError(
            "the search space has teacher_layers to choose from; leave student_layers out, and student_init at auto."
        )


def check_length(complaint: str, tokens: int, config: KDNASConfig) -> None:
    """Refuse a text that is longer than a student can read."""
    if tokens > config.max_tokens:
        raise ValueError(f"{complaint} at most {config.max_tokens}: a student has no more positions.")
