"""What the result of a search depends on: compared before a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..distillation import DistillationTrainingArguments, Teacher, training_configuration
from ..utils.run_directory import CHOICE
from .arguments import OF_THE_CHOICE, OF_THE_RUN, SearchArguments
from .space import SearchSpace


def resolve_configuration(
    teacher: Teacher,
    space: SearchSpace,
    args: SearchArguments,
    training_args: DistillationTrainingArguments,
    texts: Mapping[str, str] | None,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the result of a search depends on, defaults and presets resolved.

    Arguments of `OF_THE_CHOICE` are a section that may change on resumption. ``texts`` has a digest of each data set,
    and is None before they are read; ``extra`` are further sections.
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
