"""A search in the experiment trackers of `report_to`: TensorBoard, Trackio, Weights & Biases and others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from transformers import TrainerCallback
from transformers.utils import flatten_dict, logging

from ..export.budgets import Budget
from .trial import Trial

logger = logging.get_logger(__name__)

FIGURES = ("reward", "loss", "quality", "speedup", "episode")


class SearchTracker(TrainerCallback):
    """Logs every finished trial, and as a callback what the full distillation logs.

    A mini-KD has no run of its own: a search would leave one for each pool. The x-axis is the number of finished
    trials, and goes on with the steps of the full distillation.

    Args:
        report_to: Names of trackers, as `transformers.TrainingArguments` resolved them.
        folder: The run directory.
        budget: Trials that miss it are not the best.
    """

    def __init__(self, report_to: Sequence[str], folder: Path, budget: Budget) -> None:
        self.budget = budget
        self.trackers: list[GeneralTracker] = []
        self.running: list[GeneralTracker] = []
        self.measured = self.tokens = 0
        self.best: Trial | None = None
        for name in report_to:
            if (kind := LOGGER_TYPE_TO_CLASS.get(name)) is None:
                known = ", ".join(LOGGER_TYPE_TO_CLASS)
                logger.warning(f"report_to: a search has no logs for {name}; it has for {known}.")
                continue
            where = {"logging_dir": str(folder / "logs")} if kind.requires_logging_directory else {}
            self.trackers.append(kind(os.environ.get(f"{name.upper()}_PROJECT", "kdnas_hf"), **where))

    def begin(self, configuration: Mapping[str, Any], trials: Iterable[Trial]) -> None:
        """Start the trackers with the configuration of the search, and count, but do not log again, earlier trials."""
        for trial in trials:
            self._count(trial)
        for tracker in self.trackers:
            if hasattr(tracker, "start"):  # in newer versions of accelerate
                tracker.start()
            self.running.append(tracker)
            flat = flatten_dict(dict(configuration)).items()
            simple = {name: one if isinstance(one, bool | int | float | str) else str(one) for name, one in flat}
            tracker.store_init_configuration(simple)

    def record(self, trial: Trial) -> None:
        """Log what was measured of a trial."""
        self._count(trial)
        values = {name: getattr(trial, name) for name in FIGURES} | dict(trial.costs) | {"tokens": self.tokens}
        values["latency_ms"] = trial.latency and trial.latency.student_ms
        values["best_reward"] = self.best and self.best.reward
        self._log({f"search/{name}": value for name, value in values.items() if value is not None}, self.measured)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Log what the trainer of the full distillation does."""
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        self._log({f"distillation/{name}": value for name, value in numbers.items()}, self.measured + state.global_step)

    def end(self) -> None:
        """End the trackers' runs."""
        while self.running:
            self.running.pop().finish()

    def _count(self, trial: Trial) -> None:
        self.measured += 1
        self.tokens += trial.tokens
        if trial.is_complete and trial.reward is not None and self.budget.met_by(trial):
            self.best = max((one for one in (self.best, trial) if one is not None), key=lambda one: one.reward or 0.0)

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        for tracker in self.running:
            tracker.log(dict(values), step=step)
