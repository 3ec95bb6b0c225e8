"""What the result of a search or a distillation depends on: compared before a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from transformers import TrainingArguments

from ..distillation import DistillationTrainingArguments, Teacher
from .arguments import SearchArguments
from .space import SearchSpace

# of TrainingArguments, what changes what is learnt; beside it all fields of DistillationTrainingArguments
TRAINING_FIELDS = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "data_seed",
    "dataloader_drop_last",
    "fp16",
    "learning_rate",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "num_train_epochs",
    "optim",
    "seed",
    "warmup_steps",
    "weight_decay",
)
# how often candidates share a teacher pass, and how a run is started, changes no result
NEUTRAL = (
    "resume",
    "trim_vocabulary",  # after the search
    "pool_size",
    "global_train_batch_size",
    "auto_bf16",
    "cpu_threads",
    "cache_teacher_states",
    "cache_max_gb",
    "cache_dir",
    # where the study is kept, by whom it is worked on, and what it began with; an address may hold a password
    "storage",
    "study_name",
    "worker_timeout",
    "warm_start",
)


def resolve_configuration(
    teacher: Teacher,
    space: SearchSpace,
    args: SearchArguments,
    training_args: DistillationTrainingArguments,
    texts: Mapping[str, str] | None,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the result of a search depends on, defaults and presets resolved.

    Args:
        teacher: The teacher.
        space: The search space.
        args: Of the search.
        training_args: Of the distillations.
        texts: What identifies each data set; None before it is read.
        extra: What else the result depends on, by section.
    """
    search = {name: value for name, value in asdict(args).items() if name not in NEUTRAL}
    if args.halving is not None:  # candidates of a pool are compared with each other
        search["pool_size"] = args.pool_size
    reward = args.reward_function
    search |= {"space": space.as_dict(), "reward_alpha": reward.alpha, "reward_beta": reward.beta}
    search |= {"reward_layers": reward.layers, "reward_horizon": reward.horizon}
    return {
        "teacher": teacher.name,
        **({} if texts is None else {"texts": dict(texts)}),
        "search": search,
        "training": training_configuration(training_args),
        **extra,
    }


def training_configuration(args: DistillationTrainingArguments) -> dict[str, Any]:
    """What changes what is learnt: not how a training is started, watched or kept."""
    own = {field.name for field in fields(DistillationTrainingArguments)} - {f.name for f in fields(TrainingArguments)}
    training = {name: _plain(getattr(args, name)) for name in sorted({*TRAINING_FIELDS, *own} - set(NEUTRAL))}
    training["texts_per_step"] = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return training


def _plain(value: Any) -> Any:
    """An enumeration's value: what YAML can hold."""
    return getattr(value, "value", value)
