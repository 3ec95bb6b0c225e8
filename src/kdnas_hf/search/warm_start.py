"""Results of another search of the same teacher, texts and training, which a new one begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from transformers.utils import logging

from ..latency import LatencyArguments
from ..utils.json_lines import JsonLines
from ..utils.run_directory import CONFIGURATION_FILE, configuration_differences
from .space import SearchSpace
from .study import VIEW_FILE
from .trial import DIVERGED, Trial

logger = logging.get_logger(__name__)

# of the search, what a trial's result depends on; not who chose it, among which, and what was done with the best
LATENCY = [field.name for field in fields(LatencyArguments) if field.name != "latency_repeats"]
MEASURED = ("mini_kd_epochs", "quality", "reward_alpha", "reward_beta", "reward_layers", *LATENCY)
TRAINING_MAY_DIFFER = ("seed", "data_seed", "num_train_epochs", "max_steps")


def read_warm_start(folder: str, space: SearchSpace, configuration: Mapping[str, Any]) -> list[Trial]:
    """Results of another search that count for this one: of members of the space, each once.

    What was too slow for its budget, or too large for its machine, may not be so for this one's.

    Raises:
        ValueError: If there is no search, or its teacher, texts, training or reward are others.
    """
    view, settings = Path(folder) / VIEW_FILE, Path(folder) / CONFIGURATION_FILE
    if not view.is_file() or not settings.is_file():
        raise ValueError(f"warm_start={folder!r} has no {VIEW_FILE} and {CONFIGURATION_FILE}; name a run directory.")
    before = _compared(yaml.safe_load(settings.read_text(encoding="utf-8")))
    if differences := "\n  ".join(configuration_differences(before, _compared(configuration))):
        remedy = "Give the same values, or leave warm_start out."
        raise ValueError(f"warm_start={folder!r}: the results do not fit this search:\n  {differences}\n{remedy}")
    trials = JsonLines(view, Trial.from_json).read()
    fit = [trial for trial in trials if trial.architecture in space and trial.failure in (None, DIVERGED)]
    logger.info(f"{len(fit)} of {len(trials)} measured architectures of {folder} are taken over.")
    return sorted({trial.architecture: trial for trial in reversed(fit)}.values(), key=lambda trial: trial.number)


def _compared(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial's result depends on."""
    search, training = configuration.get("search", {}), configuration.get("training", {})
    return {
        **{name: configuration.get(name) for name in ("teacher", "teacher_revision", "texts", "probe")},
        "search": {name: search.get(name) for name in MEASURED},
        "training": {name: value for name, value in training.items() if name not in TRAINING_MAY_DIFFER},
    }
