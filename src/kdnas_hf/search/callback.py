"""`NASSearchCallback`: carries what a pool's mini-KD measures to the study."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

from ..distillation import StudentPool
from .halving import SuccessiveHalving
from .reward import HeldoutQuality, Quality, RewardFunction
from .study import SearchStudy
from .trial import COMPLETE, DIVERGED, FAILED, OUT_OF_MEMORY, STOPPED, Trial

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Reading:
    """What an evaluation says of a student.

    Attributes:
        quality: See `Quality`.
        loss: The weighted sum of its losses on held-out text.
        tokens: Real tokens that it was trained on.
    """

    quality: float
    loss: float
    tokens: int


@dataclass(eq=False)
class NASSearchCallback(TrainerCallback):
    """Reports the progress of each candidate to its trial, and tells the study what was measured.

    The trainer evaluates at the end of each epoch and after the last step, because this callback asks for it, and at
    each rung of successive halving, where the lesser candidates are dropped from the pool. Only the main process
    writes. A mini-KD that is resumed evaluates again what it had not saved, and decides alike.

    Args:
        study: The study; None in processes other than the main one.
        trials: The candidates, named as the pool's students are, with their latencies.
        reward: What a quality is worth at a latency.
        quality: The measure.
        halving: Which candidates stop early; None lets all train to the end.
        on_result: Called with every trial that has its result, after it is on the disk.
    """

    study: SearchStudy | None
    trials: Mapping[str, Trial]
    reward: RewardFunction
    quality: Quality = field(default_factory=HeldoutQuality)
    halving: SuccessiveHalving | None = None
    on_result: Callable[[Trial], None] | None = None

    def __post_init__(self) -> None:
        self._evaluated_step = -1
        self._readings: dict[str, Reading] = {}  # of the last evaluation
        self._started = time.monotonic()

    # ---- when to evaluate ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Ask for an evaluation after the last step, and at each rung."""
        control.should_evaluate |= state.global_step in {*self._rungs(state), state.max_steps}
        return control

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Ask for an evaluation, unless this step has just been evaluated."""
        control.should_evaluate = self._evaluated_step != state.global_step
        return control

    def _rungs(self, state: TrainerState) -> list[int]:
        return [] if self.halving is None else self.halving.steps(state.max_steps)

    # ---- what was measured ----

    def on_evaluate(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Report the quality of each candidate to its trial, and drop those that stop at this rung."""
        self._evaluated_step = state.global_step
        self._readings = read_qualities(model, self.quality, int((metrics or {}).get("eval_trained_tokens", 0)))
        if self.study is not None:
            for name, reading in self._readings.items():
                self.study.report(self.trials[name].number, state.global_step, reading.quality)
        if self.halving is not None and state.global_step in self._rungs(state):
            for name in self.halving.stopped({name: self._reward(name) for name in self._readings}):
                model.drop(name, f"it promised less than others after {state.global_step} steps", warn=False)
                self._tell(name, STOPPED)

    def tell_all(self, pool: StudentPool) -> None:
        """Tell the study the result of every candidate that has none yet, from the last evaluation."""
        for name in self.trials:
            if name in self._readings and name not in pool.dropped:
                self._tell(name, COMPLETE)
            else:
                self.tell_failure(name, pool.dropped.get(name, ""))

    def tell_failure(self, name: str, why: str) -> None:
        """Tell the study that a candidate failed, unless it has its result."""
        self._tell(name, FAILED, OUT_OF_MEMORY if OUT_OF_MEMORY in why.lower() else DIVERGED)

    def _reward(self, name: str) -> float:
        latency = self.trials[name].latency
        assert latency is not None
        return self.reward(self._readings[name].quality, latency)

    def _tell(self, name: str, state: str, failure: str | None = None) -> None:
        trial = self.trials[name]
        if self.study is None or self.study.is_finished(trial.number):
            return
        seconds = (time.monotonic() - self._started) / len(self.trials)
        trial = replace(trial, state=state, failure=failure, seconds=round(seconds, 3))
        if failure is None:
            reading = self._readings[name]
            trial = replace(trial, **vars(reading), reward=self._reward(name))
        if self.study.tell(trial) and self.on_result is not None:
            self.on_result(trial)


def read_qualities(pool: StudentPool, quality: Quality, tokens: int = 0) -> dict[str, Reading]:
    """Readings of the students that the last evaluation measured, in every process; of those that have a quality.

    Students of other processes are asked there. ``tokens`` are the real ones that they were trained on.
    """
    found = {}
    for name, student in pool.students.items():
        if name in pool.measured:
            value = quality(pool.measured[name], student)
            if value is not None:
                found[name] = Reading(value, pool.measured[name]["loss"], tokens)
    if pool.divided:
        found = {name: reading for part in gather_object([found]) for name, reading in part.items()}
    return {name: found[name] for name in pool.names if name in found}
