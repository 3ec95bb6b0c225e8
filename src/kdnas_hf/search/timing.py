"""`ShapeTiming`: what shapes cost on this machine, looked at before any of them is trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from transformers.utils import logging

from ..export.architecture_latencies import ArchitectureLatencies
from ..export.latency_model import LatencyModel
from ..latency import DeviceFingerprint, LatencyBenchmark
from ..students import Architecture
from .predicted_budget import PredictedBudget, read_design
from .result import MeasuredShape
from .setting import SearchSetting
from .study import SearchStudy
from .trial import FAILED, TOO_SLOW, Trial

logger = logging.get_logger(__name__)

DESIGN = "latency design"  # what the study remembers it by
MORE_CALLS = 3  # of a confirmation, times those of the search


class ShapeTiming:
    """Times architectures beside the teacher, and lets nothing be trained that misses the hard budget.

    An architecture may be proposed if all of the ``predicates`` are true of it.
    """

    def __init__(
        self,
        setting: SearchSetting,
        benchmark: LatencyBenchmark,
        predicates: Sequence[Callable[[Architecture], bool]] = (),
    ) -> None:
        self.setting, self.predicates = setting, predicates
        self.latencies = ArchitectureLatencies(
            setting.teacher.model, setting.student_config, benchmark, setting.args.latency_backend
        )

    def look_at_budgets(self, study: SearchStudy) -> None:
        """Time a design of shapes, and let the controller propose only what is expected to meet the budget."""
        predicted = PredictedBudget(
            self.setting.space, self.setting.budget, self.latencies.shape_costs, self.latencies.measure
        )
        with self.setting.cost.clock("design"):
            while (rows := study.remembered(DESIGN)) is None:
                if study.acquire(DESIGN):
                    study.remember(DESIGN, predicted.time())
                    study.finish(DESIGN)
                else:  # another worker times
                    time.sleep(study.poll_seconds)
        predicted.fit(rows)

        def admits(architectures: Sequence[Architecture]) -> np.ndarray:
            allowed = [all(allow(one) for allow in self.predicates) for one in architectures]
            return predicted.admits(architectures) & np.array(allowed, dtype=bool)

        study.sampler.admits = admits

    def time(self, study: SearchStudy, pool: Sequence[Trial]) -> list[Trial]:
        """The candidates that are worth a mini-KD; what was measured before an interruption is kept."""
        untimed = {trial.number: trial.architecture for trial in pool if trial.latency is None}
        timed = {trial.number: trial for trial in pool}
        if untimed:
            with self.setting.cost.clock("latency"):
                latencies = self.latencies.measure(untimed)
            machine = str(DeviceFingerprint.of(self.latencies.benchmark.device))
            for number, latency in latencies.items():
                costs = self.costs(untimed[number])
                study.set_latency(number, latency, costs, machine)
                timed[number] = replace(timed[number], latency=latency, costs=costs, machine=machine)
                if not self.setting.budget.met_by(timed[number]):
                    timed[number] = replace(timed[number], state=FAILED, failure=TOO_SLOW)
                    study.tell(timed[number])
                    logger.info(f"#{number:<3d} {untimed[number]!s:<36} {latency.speedup:.1f}x: misses the budget")
        trained = [trial for trial in timed.values() if trial.failure != TOO_SLOW]
        return [] if all(study.is_finished(trial.number) for trial in trained) else trained

    def costs(self, architecture: Architecture) -> dict[str, float]:
        """What a shape costs, by the names of `Budget`'s limits; memory only where it is limited."""
        costs = {name: float(values[0]) for name, values in self.latencies.shape_costs([architecture]).items()}
        if "memory_mb" in self.setting.budget.limits:
            costs["memory_mb"] = self.latencies.measure_memory({0: architecture})[0]
        return costs

    def latency_model(self, study: SearchStudy) -> LatencyModel | None:
        """Predicts latencies as shares of the teacher's, from all that was timed."""
        timed = read_design(study.remembered(DESIGN) or [])
        timed |= {trial.architecture: trial.latency for trial in study.trials() if trial.latency is not None}
        shares = {one: 1 / latency.speedup for one, latency in timed.items()}
        return LatencyModel.fit(shares) if len(shares) > 1 else None

    def time_closely(self, shapes: Sequence[Architecture]) -> list[MeasuredShape]:
        """Shapes with their costs, and latencies of more calls, all interleaved."""
        with self.setting.cost.clock("confirmation"):
            repeats = MORE_CALLS * self.setting.args.latency_repeats
            latencies = self.latencies.measure(dict(enumerate(shapes)), repeats=repeats)
            return [
                MeasuredShape(architecture=one, latency=latencies[number], costs=self.costs(one))
                for number, one in enumerate(shapes)
            ]
