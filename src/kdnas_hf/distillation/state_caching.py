"""When the teacher's states are worth keeping on disk, and keeping them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers.trainer_utils import has_length
from transformers.utils import logging

from .arguments import DistillationTrainingArguments
from .length_grouping import text_lengths
from .losses import LOSS_SPECIFICATIONS
from .state_cache import TeacherStateCache, cache_bytes
from .teacher import ATTENTION_INPUT, HIDDEN_STATES, Teacher

logger = logging.get_logger(__name__)

CACHE_FOLDER = "teacher_states"


def cache_folder(args: DistillationTrainingArguments) -> Path:
    """Where the teacher's states of a run are kept."""
    return Path(args.cache_dir) if args.cache_dir else Path(args.output_dir or ".") / CACHE_FOLDER


def cacheable_features(
    args: DistillationTrainingArguments, teacher: Teacher, mapped_layers: Sequence[int]
) -> list[str]:
    """The features, named as `Teacher.features` takes them, that students learn from by the losses of ``args``.

    Args:
        args: ``losses``, ``relation_teacher_layer``.
        teacher: Whose.
        mapped_layers: Teacher layers whose states some student learns from.
    """
    needed = [LOSS_SPECIFICATIONS[name] for name in args.loss_weights]
    features = []
    if any(loss.needs_hidden_states for loss in needed):
        features += [f"{HIDDEN_STATES}.{layer}" for layer in mapped_layers]
    if any(loss.needs_attention_inputs for loss in needed):
        features.append(f"{ATTENTION_INPUT}.{args.relation_teacher_layer or teacher.dimensions.num_layers}")
    return features


def check_cacheable(
    teacher: Teacher, datasets: Sequence[Any], features: Sequence[str], args: DistillationTrainingArguments
) -> None:
    """Refuse early what `cache_teacher_states` would refuse: states that are wanted at any price and cannot be kept.

    Raises:
        ValueError: If ``args.cache_teacher_states`` is ``true`` and something speaks against it.
    """
    if args.cache_teacher_states != "true":
        return
    reason = _reason_against(teacher, datasets, features, args, passes=1)
    if reason is not None:
        raise ValueError(f"cache_teacher_states=true: {reason}")


def cache_teacher_states(
    teacher: Teacher,
    datasets: Sequence[Any],
    features: Sequence[str],
    args: DistillationTrainingArguments,
    passes: float,
    wait: Callable[[], None] = lambda: None,
) -> list[TeacherStateCache] | None:
    """Compute the teacher's states of some data sets once, if the arguments ask for it or it pays.

    Args:
        teacher: On the device where it shall compute.
        datasets: Tokenised texts.
        features: Names of `Teacher.features`.
        args: ``cache_teacher_states``, ``cache_max_gb``, ``cache_precision`` and where to keep them.
        passes: How often the texts are read.
        wait: Barrier of all processes.

    Returns:
        One cache for each data set, or None where the states are computed when they are needed.

    Raises:
        ValueError: If states are to be cached at any price and cannot be.
    """
    reason = _reason_against(teacher, datasets, features, args, passes)
    if args.world_size > 1:  # disks may differ between machines; all processes must do the same
        reason = broadcast_object_list([reason])[0]
    # where machines share no disk, each keeps all the states
    per_machine = args.save_on_each_node and "LOCAL_WORLD_SIZE" in os.environ
    process_index = args.local_process_index if per_machine else args.process_index
    num_processes = int(os.environ["LOCAL_WORLD_SIZE"]) if per_machine else args.world_size
    if reason is not None:
        if args.cache_teacher_states == "true":
            raise ValueError(f"cache_teacher_states=true: {reason}")
        logger.info(f"teacher states are not cached: {reason}")
        return None
    return [
        TeacherStateCache.compute(
            cache_folder(args),
            teacher,
            dataset,
            features,
            batch_size=args.per_device_eval_batch_size,
            precision=args.cache_precision,
            process_index=process_index,
            num_processes=num_processes,
            wait=wait,
            show_progress=not args.disable_tqdm and args.process_index == 0,
        )
        for dataset in datasets
    ]


def _reason_against(
    teacher: Teacher,
    datasets: Sequence[Any],
    features: Sequence[str],
    args: DistillationTrainingArguments,
    passes: float,
) -> str | None:
    if args.cache_teacher_states == "false":
        return "cache_teacher_states=false."
    if teacher.is_sharded:
        return "the teacher is sharded, so that processes cannot compute different texts."
    if not features:
        return "no loss compares states that can be cached."
    if any(LOSS_SPECIFICATIONS[name].needs_task_head for name in args.loss_weights):
        return "the logits of a task's classes are not kept; leave out soft_labels and labels, or do without the cache."
    if any(LOSS_SPECIFICATIONS[name].masks_tokens for name in args.loss_weights):
        return "a loss masks other tokens in each epoch; leave out logits and masked_lm, or do without the cache."
    if any(LOSS_SPECIFICATIONS[name].needs_attention_maps for name in args.loss_weights):
        return "attention maps are not cached; leave out attention_maps, or do without the cache."
    if not all(has_length(dataset) for dataset in datasets):
        return "a data set is a stream; load it as a whole, or do without the cache."
    if args.cache_teacher_states == "auto" and passes <= 1:
        return "each text is read once."
    tokens = sum(sum(text_lengths(dataset)) for dataset in datasets)
    size = cache_bytes(tokens, len(features), teacher.dimensions.hidden_size, args.cache_precision)
    if size > args.cache_max_gb * 1e9:
        return f"they would take {size / 1e9:.1f} GB, more than cache_max_gb={args.cache_max_gb}."
    folder = cache_folder(args)
    # a resumed run finds its own states there, which are not to count against it
    kept = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(_existing(folder)).free + kept
    if args.cache_teacher_states == "auto" and size > free / 2:
        return f"they would take {size / 1e9:.1f} GB of the {free / 1e9:.1f} GB that are free on the disk."
    return None


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.resolve().parents) if path.is_dir())
