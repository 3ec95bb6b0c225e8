"""`SearchSetting`: what every part of a search is given, and the processes that it runs in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers import TrainerCallback

from ..distillation import DistillationTrainingArguments, Teacher
from ..distillation.stored_targets import CACHE_FOLDER
from ..distillation.student_config import student_config
from ..export.budgets import Budget
from ..students import Architecture, KDNASConfig
from ..utils.processes import OnMain
from ..utils.stage_times import StageTimes
from .arguments import SearchArguments
from .reward import Quality, RewardFunction
from .space import SearchSpace

COST_FILE = "cost.json"


@dataclass
class SearchSetting:
    """What `ArchitectureSearch` was given, and what it made of that: reward, quality, and the hard budget."""

    teacher: Teacher
    space: SearchSpace
    train_dataset: datasets.Dataset
    proxy_dataset: datasets.Dataset
    heldout_dataset: datasets.Dataset
    args: SearchArguments
    training_args: DistillationTrainingArguments
    reward: RewardFunction
    quality: Quality
    budget: Budget
    callbacks: Sequence[TrainerCallback] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cost = StageTimes(self.folder / COST_FILE, self.is_main)

    @property
    def folder(self) -> Path:
        """The run directory."""
        return Path(self.training_args.output_dir or "runs")

    @property
    def is_main(self) -> bool:
        """Whether this process keeps the study and measures latency."""
        return self.training_args.process_index == 0

    def on_main(self, target: Any) -> Any:
        """`OnMain` of an object that the main process has; other processes give None."""
        return OnMain(target if self.is_main else None, self.training_args.world_size)

    def from_main(self, make: Callable[[], Any]) -> Any:
        """A value that the main process makes, in every process."""
        return self.on_main(make).__call__()

    def wait(self) -> None:
        """Let no process go on before all are here."""
        self.from_main(lambda: None)

    def student_config(self, architecture: Architecture) -> KDNASConfig:
        """Configuration of a student of the teacher."""
        return student_config(self.teacher, architecture)

    def arguments(self, folder: Path, **changes: Any) -> DistillationTrainingArguments:
        """Arguments of a distillation in a folder of its own."""
        args = copy.copy(self.training_args)
        args.output_dir = str(folder)
        args.cache_dir = args.cache_dir or str(self.folder / CACHE_FOLDER)
        args.save_total_limit = 1
        args.report_to = []  # a search has a tracker of its own
        for name, value in changes.items():
            setattr(args, name, value)
        return args
