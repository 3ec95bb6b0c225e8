"""Stages: a distillation is a list of them, each with losses, text, what trains, a length and a rate of its own."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from transformers.trainer_utils import SchedulerType

from ..students import PARTS
from ..utils.choices import check_choice, nearest
from .losses import parse_losses


@dataclass(frozen=True)
class Stage:
    """One stage of a distillation; what is not given is as the arguments of the whole say.

    Attributes:
        losses: Losses with their weights, as in ``--losses``.
        layer_mapping: Which teacher layers a student layer learns from.
        dataset: Name of its text, where ``train_dataset`` is a mapping of several.
        trains: What trains: ``all``, ``head``, ``layers`` (of them the last n: ``layers:2``), ``embedding_projection``,
            ``embeddings`` (the whole block, with a table of the student's own). Unfreezing from the top is a list of
            stages.
        num_train_epochs: Passes over the text.
        max_steps: Steps, in place of passes.
        learning_rate: The initial learning rate.
        lr_scheduler_type: The schedule.
        warmup_fraction: Share of the stage's steps that warm up.
    """

    losses: Sequence[str] | str | None = None
    layer_mapping: str | None = None
    dataset: str | None = None
    trains: Sequence[str] | str = ("all",)
    num_train_epochs: float | None = None
    max_steps: int | None = None
    learning_rate: float | None = None
    lr_scheduler_type: str | None = None
    warmup_fraction: float | None = None

    def __post_init__(self) -> None:
        parts = self.trains.replace(",", " ").split() if isinstance(self.trains, str) else list(self.trains)
        object.__setattr__(self, "trains", parts)
        if not parts:
            raise ValueError(f"stages: trains=[] trains nothing; choose from {', '.join(PARTS)}.")
        for part in parts:
            kind, colon, count = str(part).partition(":")
            check_choice("stages: trains", kind, PARTS)
            if colon and (kind != "layers" or not re.fullmatch(r"[1-9]\d*", count)):
                raise ValueError(f"stages: trains={part!r} is not a part; the last two layers are 'layers:2'.")
        if self.losses is not None:
            parse_losses(self.losses)
        for name in ("num_train_epochs", "max_steps", "learning_rate", "warmup_fraction"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        for name in ("num_train_epochs", "max_steps", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"stages: {name}={value!r} trains nothing; give a positive number, or leave it out.")
        if self.num_train_epochs is not None and self.max_steps is not None:
            raise ValueError("stages: num_train_epochs and max_steps are two lengths for one stage; give one.")
        if self.lr_scheduler_type is not None:
            check_choice("stages: lr_scheduler_type", self.lr_scheduler_type, [kind.value for kind in SchedulerType])
        if self.warmup_fraction is not None and not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"stages: warmup_fraction={self.warmup_fraction} is not in [0, 1).")

    @classmethod
    def parse(cls, given: Any) -> Stage:
        """Read a stage: a stage, a mapping of its fields, or a JSON object of them.

        Raises:
            ValueError: If it is none of these, or a field is unknown or wrong.
        """
        if isinstance(given, Stage):
            return given
        if isinstance(given, str):
            try:
                given = json.loads(given)
            except ValueError:
                given = None
        if not isinstance(given, Mapping):
            raise ValueError(
                "stages: a stage is a mapping of fields, as {losses: hidden_states, num_train_epochs: 1} in YAML, or a "
                "JSON object of them on the command line."
            )
        names = [field.name for field in fields(cls)]
        for name in given:
            if name not in names:
                raise ValueError(
                    f"stages: {name!r} is not a field{nearest(name, names)} Choose from {', '.join(names)}."
                )
        return cls(**given)

    def arguments(self, args: Any) -> Any:
        """The arguments of a distillation, with those of the stage in their place."""
        changed = copy.copy(args)
        changed.stages = None
        if self.max_steps is not None or self.num_train_epochs is not None:
            changed.max_steps = -1 if self.max_steps is None else self.max_steps
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and field.name not in ("dataset", "trains", "max_steps"):
                setattr(changed, field.name, value)
        if isinstance(changed.losses, str):
            changed.losses = [changed.losses]
        changed.lr_scheduler_type = SchedulerType(changed.lr_scheduler_type)
        return changed

    def as_dict(self) -> dict[str, Any]:
        """The fields that were given, as YAML can hold them."""
        plain = {name: value for name, value in asdict(self).items() if value is not None}
        return plain | {"trains": list(self.trains)}


def _number(name: str, value: Any) -> Any:
    """A number, also one that YAML takes for text, as 5e-4; whole where steps are counted."""
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (name == "max_steps" and number != int(number)):
        raise ValueError(f"stages: {name}={value!r} is not a {'whole ' if name == 'max_steps' else ''}number.")
    return int(number) if name == "max_steps" else number


def parse_stages(given: Any) -> list[Stage] | None:
    """Read a list of stages; None stays None.

    Raises:
        ValueError: If it is not a list, is empty, or a stage is wrong.
    """
    if given is None:
        return None
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, Sequence) or not given:
        raise ValueError(f"stages={given!r} is not a list of stages; give at least one, or leave it out.")
    return [Stage.parse(stage) for stage in given]
