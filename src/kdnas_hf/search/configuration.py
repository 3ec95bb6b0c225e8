"""What the result of a search or a distillation depends on: compared before a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from transformers import TrainingArguments

from ..distillation import DistillationTrainingArguments, Teacher
from ..utils.run_directory import CHOICE
from .arguments import OF_THE_CHOICE, OF_THE_RUN, SearchArguments
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
# how often texts share a teacher pass, and how a training is started, changes no result
NEUTRAL = (
    "global_train_batch_size",
    "auto_bf16",
    "cpu_threads",
    "cache_teacher_states",
    "cache_max_gb",
    "cache_dir",
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
        args: Arguments of the search; those of `OF_THE_CHOICE` are a section that may change on resumption.
        training_args: Arguments of the distillations.
        texts: A digest of each data set; None before they are read.
        extra: Further sections.
    """
    values = asdict(args)
    choice = {name: values.pop(name) for name in OF_THE_CHOICE}
    search = {name: value for name, value in values.items() if name not in OF_THE_RUN}
    if args.halving is not None:  # candidates of a pool are compared with each other
        search["pool_size"] = choice.pop("pool_size")
    reward = args.reward_function
    search |= {"space": space.as_dict(), "reward_alpha": reward.alpha, "reward_beta": reward.beta}
    return {
        "teacher": teacher.name,
        **({} if texts is None else {"texts": dict(texts)}),
        "search": search | {"reward_layers": reward.layers},
        CHOICE: choice,
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
