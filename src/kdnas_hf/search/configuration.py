"""What a run was asked for: written to ``config.yaml``, and compared before a run is resumed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from ..distillation import DistillationTrainingArguments, Teacher
from .arguments import SearchArguments
from .space import SearchSpace

CONFIGURATION_FILE = "config.yaml"

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
    "pool_size",
    "max_pool_memory_gb",
    "global_train_batch_size",
    "auto_bf16",
    "cpu_threads",
    "cache_teacher_states",
    "cache_max_gb",
    "cache_dir",
    "shard_teacher",
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


def check_writable(folder: str | Path) -> None:
    """Make a directory if it is missing, and write to it.

    Raises:
        ValueError: If that fails.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"output_dir={str(folder)!r} cannot be written ({error.strerror}); choose another.") from error


def settle_configuration(folder: Path, configuration: Mapping[str, Any], resume: bool = True) -> bool:
    """Make the run directory, or check that the run in it is this one.

    Returns:
        Whether a run is resumed.

    Raises:
        ValueError: If the directory cannot be written, or holds another run, or may not be resumed.
    """
    check_writable(folder)
    path = folder / CONFIGURATION_FILE
    if not path.exists():
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(yaml.safe_dump(dict(configuration), sort_keys=False, allow_unicode=True), encoding="utf-8")
        os.replace(temporary, path)
        return False
    refuse_other_run(folder, configuration, resume)
    return True


def refuse_other_run(folder: Path, configuration: Mapping[str, Any], resume: bool = True) -> None:
    """Refuse a directory that holds another run; one that holds none is fine.

    Args:
        folder: The run directory.
        configuration: That of this run; without ``texts``, the texts are not compared.
        resume: Whether a run of this configuration may be resumed.

    Raises:
        ValueError: If the directory holds another run, or may not be resumed.
    """
    path = folder / CONFIGURATION_FILE
    if not path.is_file():
        return
    if not resume:
        raise ValueError(f"output_dir={str(folder)!r} holds a run and resume is off; choose another, or turn it on.")
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "texts" not in configuration:
        before.pop("texts", None)
    differences = configuration_differences(before, configuration)
    if differences:
        shown = "\n  ".join(differences)
        raise ValueError(
            f"output_dir={str(folder)!r} holds a run of another configuration:\n  {shown}\n"
            "Choose another output_dir, or give the same configuration to resume that run."
        )


def configuration_differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Describe how two configurations differ, one line for each key."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        lines = []
        for key in [*before, *(key for key in now if key not in before)]:
            inner = f"{name}.{key}" if name else str(key)
            lines.extend(configuration_differences(before.get(key), now.get(key), inner))
        return lines
    if isinstance(now, tuple):
        now = list(now)
    return [] if before == now else [f"{name}: {before!r} there, {now!r} now"]
