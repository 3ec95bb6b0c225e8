"""`NASSearchCallback`: carries what a pool's mini-KD measures to the study."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..distillation import StudentPool
from .budgets import UNLIMITED, LatencyBudget
from .halving import SuccessiveHalving
from .ledger import ArchitectureRecord
from .reward import Reward, earlier_step
from .space import Architecture
from .study import SearchStudy

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Candidate:
    """An architecture that is about to be measured.

    Attributes:
        number: Number of its trial.
        episode: Its episode, counted from 0.
        architecture: Its shape.
        parameters: Parameters of the student as it is saved.
        latency_ms: Median latency, in milliseconds.
        latency_iqr_ms: Interquartile range, in milliseconds.
        teacher_latency_ms: Median latency of the teacher measured with it, in milliseconds.
    """

    number: int
    episode: int
    architecture: Architecture
    parameters: int
    latency_ms: float
    latency_iqr_ms: float
    teacher_latency_ms: float

    @property
    def name(self) -> str:
        """Its name in a `StudentPool` and in the metrics of the trainer."""
        return f"trial_{self.number}"

    @property
    def speedup(self) -> float:
        """How many times faster than the teacher it is."""
        return self.teacher_latency_ms / self.latency_ms


class NASSearchCallback(TrainerCallback):
    """Reports the progress of each candidate to its trial, and records what was measured when the mini-KD ends.

    The trainer evaluates at the end of each epoch and after the last step, because this callback asks for it; at each
    rung of successive halving, where the lesser candidates are dropped from the pool; and after half of the steps, from
    where the reward extrapolates the learning curve. Only the main process writes.

    Args:
        study: The study; None in processes other than the main one.
        candidates: The candidates, named as the pool's members are.
        reward: What an architecture is worth.
        halving: Which candidates stop early; None lets all train to the end.
        budget: Candidates that miss it stop first.
        on_record: Called with every record, after it is on the disk.
    """

    def __init__(
        self,
        study: SearchStudy | None,
        candidates: Mapping[str, Candidate],
        reward: Reward,
        halving: SuccessiveHalving | None = None,
        budget: LatencyBudget = UNLIMITED,
        on_record: Callable[[ArchitectureRecord], None] | None = None,
    ) -> None:
        self.study = study
        self.candidates = dict(candidates)
        self.reward = reward
        self.halving = halving
        self.budget = budget
        self.on_record = on_record
        self._evaluated_step = -1
        self._max_steps = 0
        self._readings: dict[int, dict[str, float]] = {}  # metrics by step
        self._stopped: dict[str, int] = {}  # the rung at which a candidate stopped, in steps
        self._started = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for an evaluation after the last step, half-way to it if the reward needs that, and at each rung."""
        wanted = {*self._rungs(state), state.max_steps}
        if self.reward.horizon > 1:
            wanted.add(earlier_step(state.max_steps))
        if state.global_step in wanted:
            control.should_evaluate = True
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for an evaluation, unless this step has just been evaluated."""
        control.should_evaluate = self._evaluated_step != state.global_step
        return control

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report R² of each candidate to its trial, and drop those that stop at this rung."""
        self._evaluated_step, self._max_steps = state.global_step, state.max_steps
        # from the log, which a checkpoint keeps: earlier evaluations may have been before an interruption
        self._readings = {int(entry["step"]): entry for entry in state.log_history if "eval_loss" in entry}
        self._readings[state.global_step] = dict(metrics or {})
        self._stopped = self._replay_rungs(state)
        pool = kwargs.get("model")
        if isinstance(pool, StudentPool):
            for name, step in self._stopped.items():
                if name not in pool.dropped:
                    pool.drop(name, f"it promised less than others after {step} steps", warn=False)
        if self.study is None:
            return
        for name, candidate in self.candidates.items():
            r2 = self._quality(self._readings[state.global_step], name)
            if r2 is not None and not self.study.is_finished(candidate.number):
                self.study.report(candidate.number, r2, state.global_step)

    def _rungs(self, state: TrainerState) -> list[int]:
        return [] if self.halving is None else self.halving.steps(state.max_steps)

    def _replay_rungs(self, state: TrainerState) -> dict[str, int]:
        """Who has stopped, and when: it follows from the readings alone, so that a resumed mini-KD decides alike."""
        stopped: dict[str, int] = {}
        for rung in self._rungs(state):
            if rung not in self._readings or self.halving is None:
                break
            rewards = {}
            for name, candidate in self.candidates.items():
                loss = None if name in stopped else self._loss(name, rung)
                if loss is not None:
                    able = self.budget.met_by(candidate)
                    rewards[name] = self._reward(candidate, loss) if able else -candidate.latency_ms
            stopped |= dict.fromkeys(self.halving.stopped(rewards), rung)
        return stopped

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record every candidate."""
        self.record_all()

    def record_all(self) -> None:
        """Record every candidate that has no result yet, from its last evaluation."""
        if self.study is None:
            return
        seconds = (time.monotonic() - self._started) / len(self.candidates)
        for candidate in self.candidates.values():
            if self.study.is_finished(candidate.number):
                continue
            record = self._record(candidate, seconds)
            if self.study.record(record) and self.on_record is not None:
                self.on_record(record)

    def _loss(self, name: str, step: int) -> float | None:
        """L of a candidate's reward, as it looks after ``step``; None if it was dropped or is not finite.

        At a rung it is extrapolated where half of its steps were a rung as well, else as measured.
        """
        loss = self._metric(self._readings.get(step, {}), name, self.reward.metric)
        earlier = earlier_step(step)
        earlier_loss = self._metric(self._readings.get(earlier, {}), name, self.reward.metric)
        if loss is None or earlier_loss is None:
            return loss
        return self.reward.extrapolate(earlier_loss, loss, earlier, step, self._max_steps)

    def _reward(self, candidate: Candidate, loss: float) -> float:
        return self.reward(loss, candidate.latency_ms, candidate.teacher_latency_ms)

    def _metric(self, metrics: Mapping[str, float], name: str, metric: str) -> float | None:
        """A candidate's metric of an evaluation; None if it was dropped or is not finite."""
        key = f"eval_{metric}" if len(self.candidates) == 1 else f"eval_{name}_{metric}"
        value = metrics.get(key)
        return value if value is not None and math.isfinite(value) else None

    def _quality(self, metrics: Mapping[str, float], name: str) -> float | None:
        """R² of a candidate; where no loss measures it, what is left of its error."""
        r2, error = self._metric(metrics, name, "r2"), self._metric(metrics, name, "error")
        return r2 if r2 is not None or error is None else 1 - error

    def _record(self, candidate: Candidate, seconds: float) -> ArchitectureRecord:
        step = self._stopped.get(candidate.name, self._evaluated_step)
        readings = self._readings.get(step, {})
        loss = self._loss(candidate.name, step)
        state = "failed" if loss is None else "stopped" if candidate.name in self._stopped else "complete"
        return ArchitectureRecord(
            number=candidate.number,
            episode=candidate.episode,
            architecture=candidate.architecture,
            state=state,
            loss=loss,
            r2=self._quality(readings, candidate.name),
            latency_ms=candidate.latency_ms,
            latency_iqr_ms=candidate.latency_iqr_ms,
            teacher_latency_ms=candidate.teacher_latency_ms,
            speedup=candidate.speedup,
            parameters=candidate.parameters,
            tokens=int(readings.get("eval_trained_tokens", 0)),
            seconds=round(seconds, 3),
            reward=None if loss is None else self._reward(candidate, loss),
        )
