"""Which of a Trainer's arguments somebody has set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig


def changed_from_default(args: TrainingArguments, names: Iterable[str]) -> Iterator[str]:
    """Those of some arguments that are set to another value than their default, on any line of transformers."""
    wanted = set(names)
    for field in fields(TrainingArguments):
        if field.name in wanted:
            default = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[operator, misc]
            if _something(getattr(args, field.name)) != _something(default):
                yield field.name


def _something(value: Any) -> Any:
    """The value, or None where it stands for nothing: transformers itself turns one nothing into another."""
    if isinstance(value, AcceleratorConfig):
        return None if value == AcceleratorConfig() else value
    if isinstance(value, Mapping) and not any(value.values()):
        return None
    return value or None
