"""How fast models are on this machine, measured side by side."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from optimum.utils import DummyTextInputGenerator, NormalizedTextConfig
from torch import nn
from transformers.utils import logging

from ..utils.hardware import torch_threads
from ..utils.markdown_table import markdown_table
from .fingerprint import DeviceFingerprint
from .runner import EAGER_FLOAT32, Runner, TorchRunner, check_device
from .sequence_lengths import SequenceLengths, describe_lengths, shares_of

logger = logging.get_logger(__name__)


class NoisyMeasurementError(RuntimeError):
    """Timed calls varied more than was allowed, every time."""


_TimedCall = Callable[[], float]  # seconds of a call
# what runtimes say, and transformers 4 of models that keep token types for the positions they have
_TOO_LONG = ("out of range", "out of bounds", "The expanded size of the tensor")


@dataclass(frozen=True)
class LatencyMeasurement:
    """Latency of one model.

    Attributes:
        median_ms: Median (p50) of the timed calls, in milliseconds.
        iqr_ms: Interquartile range, in milliseconds.
        samples: Number of timed calls, of each length.
        p95_ms: 95th percentile, in milliseconds; None if it was not kept.
        backend: What ran the model, and in which precision.
        peak_memory_mb: Memory of the accelerator that the model and its calls took at most, in MB (10^6 bytes); None
            on a CPU, where `kdnas_hf.export.peak_memory_mb` measures it in a process of its own.
    """

    median_ms: float
    iqr_ms: float
    samples: int
    p95_ms: float | None = None
    backend: str = EAGER_FLOAT32
    peak_memory_mb: float | None = None

    @classmethod
    def from_seconds(
        cls,
        seconds: Sequence[float] | Sequence[Sequence[float]],
        backend: str = EAGER_FLOAT32,
        peak_memory_mb: float | None = None,
        shares: Sequence[float] = (1.0,),
    ) -> LatencyMeasurement:
        """Summarize timed calls ``(calls,)``, or ``(lengths, calls)`` by means of the lengths' quantiles.

        Means are weighted by the shares of the lengths: of their medians, it is the expected latency of a text.
        """
        timed = np.atleast_2d(seconds)
        low, median, high, slow = np.percentile(timed * 1000, [25, 50, 75, 95], axis=1) @ np.array(shares)
        return cls(float(median), float(high - low), timed.shape[1], float(slow), backend, peak_memory_mb)

    @property
    def spread(self) -> float:
        """Interquartile range as a share of the median."""
        return self.iqr_ms / self.median_ms


@dataclass(frozen=True)
class LatencyReport:
    """Latencies of several models measured interleaved in one process, and how they were measured.

    Attributes:
        measurements: By the model's name.
        batch_size: Texts in a call.
        sequence_length: Tokens in a text, none of them padding; of several lengths their shares of the calls.
        threads: CPU threads.
        fingerprint: The machine.
        max_spread: Interquartile range, as a share of the median, above which a measurement counts as noisy.
        throughput: Whether calls did not wait for each other.
    """

    measurements: dict[str, LatencyMeasurement]
    batch_size: int
    sequence_length: SequenceLengths
    threads: int
    fingerprint: DeviceFingerprint = field(compare=False)
    max_spread: float | None = None
    throughput: bool = False

    @property
    def noisy(self) -> list[str]:
        """Names of the models whose timed calls varied more than ``max_spread``."""
        if self.max_spread is None:
            return []
        return [name for name, measured in self.measurements.items() if measured.spread > self.max_spread]

    def speedup(self, name: str, reference: str = "teacher") -> float:
        """How many times faster ``name`` is than ``reference``, by medians."""
        return self.measurements[reference].median_ms / self.measurements[name].median_ms

    def tokens_per_second(self, name: str) -> float:
        """Tokens that a model reads in a second, by its median."""
        tokens = sum(tokens * share for tokens, share in shares_of(self.sequence_length).items())
        return self.batch_size * tokens * 1000 / self.measurements[name].median_ms

    def to_json(self) -> str:
        """The report as JSON."""
        values = asdict(self) | {"fingerprint": self.fingerprint.as_dict(), "noisy": self.noisy}
        for name, measured in values["measurements"].items():
            measured["tokens_per_second"] = self.tokens_per_second(name)
        return json.dumps(values, indent=2)

    def to_markdown(self, reference: str = "teacher") -> str:
        """The report as a Markdown table with a line that says how it was measured."""
        several = len(self.backends) > 1
        header = ["model", *(["backend"] if several else []), "median (ms)", "IQR (ms)", "p95 (ms)", "tokens/s"]
        rows = []
        for name, measured in self.measurements.items():
            ratio = f"{self.speedup(name, reference):.2f}x" if reference in self.measurements else ""
            p95 = "" if measured.p95_ms is None else f"{measured.p95_ms:.2f}"
            figures = [f"{measured.median_ms:.2f}", f"{measured.iqr_ms:.2f}", p95]
            tokens = f"{self.tokens_per_second(name):,.0f}"
            rows.append([name, *([measured.backend] if several else []), *figures, tokens, ratio])
        lines = [markdown_table([*header, "speed-up"], rows), "", self.describe_method()]
        if self.noisy:
            lines += ["", f"**Noisy**: {self.describe_noise()}"]
        return "\n".join(lines)

    @property
    def backends(self) -> list[str]:
        """What ran the models, each once."""
        return list(dict.fromkeys(measured.backend for measured in self.measurements.values()))

    def describe_method(self) -> str:
        """One sentence on how the latencies were measured."""
        samples = min(measured.samples for measured in self.measurements.values())
        backends = " / ".join(self.backends)
        return _method(self, backends, samples, self.fingerprint)

    def describe_noise(self) -> str:
        """What varied too much; empty if nothing did."""
        if not self.noisy or self.max_spread is None:
            return ""
        spreads = ", ".join(f"{name} {self.measurements[name].spread:.0%}" for name in self.noisy)
        return (
            f"the interquartile range exceeds {self.max_spread:.0%} of the median ({spreads}); end what else runs on "
            "this machine, and measure again."
        )


def _method(how: LatencyReport | LatencyBenchmark, backends: str, samples: int, fingerprint: DeviceFingerprint) -> str:
    lengths = how.sequence_length
    mean = "" if isinstance(lengths, int) else "mean of the medians weighted by these shares, "
    waiting = "throughput of calls that do not wait for each other, " if how.throughput else ""
    return (
        f"{backends}, {how.batch_size} x {describe_lengths(lengths)} tokens, {mean}{waiting}{how.threads} thread(s), "
        f"models interleaved, {samples} timed calls each after warm-up, on {fingerprint}."
    )


@dataclass
class LatencyBenchmark:
    """Measures models side by side: warm-up, pinned threads, models in turn so that drift hits all alike.

    A turn of a model begins with a call that is not counted, which brings its weights back into the processor's caches:
    deployed, a model has them for itself.

    Args:
        batch_size: Texts in a call.
        sequence_length: Tokens in a text; or several lengths with weights, and then a model's latency is the weighted
            mean of its medians over the lengths: the expected latency of texts of which so many have each length.
        threads: CPU threads during the measurement; they are set back afterwards.
        repeats: Timed calls of each model.
        warmup: Rounds, of a call of every model, that are not counted.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``, for modules; runners have their own.
        calls_per_turn: Timed calls of a model before it is the next one's turn.
        max_spread: A measurement is noisy whose interquartile range exceeds this share of its median; None: none is.
        attempts: A noisy measurement is repeated until there were so many; the least noisy counts, and says so.
        refuse_noise: Whether a measurement that stays noisy is an error.
        throughput: Whether what is timed is a call among ``calls_per_turn`` that do not wait for each other, as an
            accelerator works off a queue; by default the time from a call to its result. On a CPU they are the same.

    Raises:
        ValueError: If a value is not positive, or the device cannot be had.
    """

    batch_size: int = 1
    sequence_length: SequenceLengths = 128
    threads: int = 1
    repeats: int = 15
    warmup: int = 3
    device: str = "cpu"
    calls_per_turn: int = 3
    max_spread: float | None = 0.25
    attempts: int = 3
    refuse_noise: bool = False
    throughput: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads", "repeats", "calls_per_turn", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        shares_of(self.sequence_length)
        check_device(self.device)
        if self.warmup < 0:
            raise ValueError(f"warmup={self.warmup} must not be negative.")
        if self.max_spread is not None and self.max_spread <= 0:
            raise ValueError(f"max_spread={self.max_spread} must be positive, or None for no bound.")

    def describe_method(self, backend: str = EAGER_FLOAT32) -> str:
        """One sentence on how latencies are measured."""
        return _method(self, backend, self.repeats, DeviceFingerprint.of(self.device))

    def dummy_inputs(self, config: Any, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Random token ids of a model's vocabulary, and an attention mask that masks nothing.

        Returns:
            Two int64 arrays ``(batch_size, sequence_length)``.
        """
        generator = DummyTextInputGenerator(
            "feature-extraction",
            NormalizedTextConfig(config),
            batch_size=self.batch_size,
            sequence_length=sequence_length,
        )
        # padding and other special tokens come first
        input_ids = generator.generate("input_ids").clamp_(min=5).numpy().astype(np.int64)
        return input_ids, np.ones_like(input_ids)

    def measure(self, models: Mapping[str, nn.Module | Runner]) -> LatencyReport:
        """Measure models by name.

        Args:
            models: Runners, or encoders with a configuration; those are measured in PyTorch as they are, put in eval
                mode and moved to the device.

        Raises:
            ValueError: If a model has fewer positions than ``sequence_length``, or was built for other threads.
            NoisyMeasurementError: If the calls varied too much at each attempt, and ``refuse_noise`` is on.
        """
        runners = {
            name: model if isinstance(model, Runner) else TorchRunner(model, device=self.device)
            for name, model in models.items()
        }
        for name, runner in runners.items():
            if runner.threads not in (None, self.threads):
                raise ValueError(f"threads={self.threads}: {name} was loaded for {runner.threads} thread(s).")
        lengths = shares_of(self.sequence_length)
        calls = {name: [self._call(runner, tokens) for tokens in lengths] for name, runner in runners.items()}
        best = self._measure_once(runners, calls)
        for _ in range(1, self.attempts):
            if not best.noisy:
                return best
            best = min(best, self._measure_once(runners, calls), key=_worst_spread)
        if best.noisy:
            if self.refuse_noise:
                raise NoisyMeasurementError(f"measured {self.attempts} times: {best.describe_noise()}")
            logger.warning(f"latency, measured {self.attempts} times: {best.describe_noise()}")
        return best

    def _measure_once(self, runners: Mapping[str, Runner], calls: Mapping[str, list[_TimedCall]]) -> LatencyReport:
        shares = shares_of(self.sequence_length)
        seconds: dict[str, list[list[float]]] = {name: [[] for _ in shares] for name in calls}
        memory: dict[str, float] = {}
        with torch_threads(self.threads):
            for _ in range(self.warmup):
                for call in itertools.chain(*calls.values()):
                    call()
            for done in range(0, self.repeats, self.calls_per_turn):
                for name, several in calls.items():
                    with _peak_memory(runners[name], memory, name):
                        for call, taken in zip(several, seconds[name], strict=True):
                            call()
                            taken += [call() for _ in range(min(self.calls_per_turn, self.repeats - done))]
        libraries: dict[str, str] = {}
        for runner in runners.values():
            libraries |= runner.libraries
        fingerprint = DeviceFingerprint.of(max(runner.device for runner in runners.values()), libraries)
        how = (self.batch_size, self.sequence_length, self.threads, fingerprint, self.max_spread, self.throughput)
        measurements = {
            name: LatencyMeasurement.from_seconds(timed, runners[name].backend, memory.get(name), [*shares.values()])
            for name, timed in seconds.items()
        }
        return LatencyReport(measurements, *how)

    def _call(self, runner: Runner, sequence_length: int) -> _TimedCall:
        run = runner.prepare(*self.dummy_inputs(runner.config, sequence_length))
        queued = self.calls_per_turn if self.throughput else 1

        def call() -> float:
            start = time.perf_counter()
            try:
                for _ in range(queued):
                    run()
                if runner.device.startswith("cuda"):
                    torch.cuda.synchronize(runner.device)
            except Exception as error:
                if not any(sign in str(error) for sign in _TOO_LONG):
                    raise
                positions = getattr(runner.config, "max_position_embeddings", "unknown")
                raise ValueError(
                    f"sequence_length={sequence_length} is more than a model reads "
                    f"(max_position_embeddings={positions}); choose a smaller one."
                ) from error
            return (time.perf_counter() - start) / queued

        return call


def _worst_spread(report: LatencyReport) -> float:
    return max(measured.spread for measured in report.measurements.values())


@contextmanager
def _peak_memory(runner: Runner, found: dict[str, float], name: str) -> Iterator[None]:
    """Memory of a CUDA device that one model takes while others are there too."""
    if not runner.device.startswith("cuda") or not isinstance(runner, TorchRunner):
        yield
        return
    weights = sum(p.numel() * p.element_size() for p in runner.model.parameters())
    torch.cuda.reset_peak_memory_stats(runner.device)
    before = torch.cuda.memory_allocated(runner.device)
    yield
    peak = (torch.cuda.max_memory_allocated(runner.device) - before + weights) / 1e6
    found[name] = max(found.get(name, 0.0), peak)
