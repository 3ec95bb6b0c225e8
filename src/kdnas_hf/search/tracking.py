"""A search in the experiment trackers of `report_to`: TensorBoard, Trackio, Weights & Biases and others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from transformers import TrainerCallback
from transformers.utils import logging

from .budgets import LatencyBudget
from .ledger import ArchitectureRecord

logger = logging.get_logger(__name__)

PROJECT = "kdnas_hf"
LOGS_FOLDER = "logs"  # of those trackers that write files


class SearchTracker(TrainerCallback):
    """Logs every measured architecture, and as a callback what the full distillation logs.

    A mini-KD has no run of its own: a search would leave one for each pool. The x-axis is the number of measured
    architectures, and goes on with the steps of the full distillation.

    Args:
        report_to: Names of trackers, as the ``report_to`` of `transformers.TrainingArguments` resolved them.
        folder: The run directory.
        budget: Architectures that miss it are not the best.
    """

    def __init__(self, report_to: Sequence[str], folder: Path, budget: LatencyBudget) -> None:
        self.trackers: list[GeneralTracker] = []
        self.running: list[GeneralTracker] = []
        self.budget = budget
        self.measured = 0
        self.tokens = 0
        self.best: ArchitectureRecord | None = None
        for name in report_to:
            if name not in LOGGER_TYPE_TO_CLASS:
                logger.warning(
                    f"report_to: a search has no logs for {name}; it has for {', '.join(LOGGER_TYPE_TO_CLASS)}."
                )
                continue
            kind = LOGGER_TYPE_TO_CLASS[name]
            where = {"logging_dir": str(folder / LOGS_FOLDER)} if kind.requires_logging_directory else {}
            self.trackers.append(kind(os.environ.get(f"{name.upper()}_PROJECT", PROJECT), **where))

    def begin(self, configuration: Mapping[str, Any], records: Iterable[ArchitectureRecord]) -> None:
        """Start the trackers.

        Args:
            configuration: Of the search, by section.
            records: What was measured before an interruption; it is not logged again.
        """
        for record in records:
            self._count(record)
        for tracker in self.trackers:
            if hasattr(tracker, "start"):  # in newer versions of accelerate
                tracker.start()
            self.running.append(tracker)
            tracker.store_init_configuration(_flat(configuration))

    def record(self, record: ArchitectureRecord) -> None:
        """Log what was measured of an architecture."""
        self._count(record)
        values = {
            name: value
            for name in ("reward", "loss", "r2", "latency_ms", "speedup", "parameters", "episode")
            if (value := getattr(record, name)) is not None
        }
        values["tokens"] = self.tokens
        if self.best is not None:
            values["best_reward"] = self.best.reward
        self._log({f"search/{name}": value for name, value in values.items()}, self.measured)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Log what the trainer of the full distillation does."""
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        self._log({f"distillation/{name}": value for name, value in numbers.items()}, self.measured + state.global_step)

    def end(self) -> None:
        """End the trackers' runs."""
        while self.running:
            self.running.pop().finish()

    def _count(self, record: ArchitectureRecord) -> None:
        self.measured += 1
        self.tokens += record.tokens
        if record.state == "complete" and record.reward is not None and self.budget.met_by(record):
            best = self.best
            if best is None or best.reward is None or record.reward > best.reward:
                self.best = record

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        for tracker in self.running:
            tracker.log(dict(values), step=step)


def _flat(configuration: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Sections as ``section.key``, and what is neither number nor text as text."""
    found: dict[str, Any] = {}
    for name, value in configuration.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
