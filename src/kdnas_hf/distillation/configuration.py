"""What the result of a distillation depends on: compared before a run is resumed."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers import TrainingArguments

from .arguments import DistillationTrainingArguments

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


def training_configuration(args: DistillationTrainingArguments) -> dict[str, Any]:
    """What changes what is learnt: not how a training is started, watched or kept."""
    own = {field.name for field in fields(DistillationTrainingArguments)} - {f.name for f in fields(TrainingArguments)}
    training = {name: _plain(getattr(args, name)) for name in sorted({*TRAINING_FIELDS, *own} - set(NEUTRAL))}
    training["texts_per_step"] = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return training


def _plain(value: Any) -> Any:
    """An enumeration's value: what YAML can hold."""
    return getattr(value, "value", value)
