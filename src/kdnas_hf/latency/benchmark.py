"""How fast models are on this machine, measured side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from optimum.utils import DummyTextInputGenerator, NormalizedTextConfig
from torch import nn

from .fingerprint import DeviceFingerprint


@dataclass(frozen=True)
class LatencyMeasurement:
    """Latency of one model.

    Attributes:
        median_ms: Median (p50) of the timed calls, in milliseconds.
        iqr_ms: Interquartile range, in milliseconds.
        samples: Number of timed calls.
    """

    median_ms: float
    iqr_ms: float
    samples: int

    @classmethod
    def from_seconds(cls, seconds: list[float]) -> LatencyMeasurement:
        """Summarise timed calls."""
        low, median, high = np.percentile(np.array(seconds) * 1000, [25, 50, 75])
        return cls(median_ms=float(median), iqr_ms=float(high - low), samples=len(seconds))


@dataclass(frozen=True)
class LatencyReport:
    """Latencies of several models measured interleaved in one process, and how they were measured.

    Attributes:
        measurements: By the model's name.
        batch_size: Texts in a call.
        sequence_length: Tokens in a text, none of them padding.
        threads: CPU threads.
        fingerprint: The machine.
    """

    measurements: dict[str, LatencyMeasurement]
    batch_size: int
    sequence_length: int
    threads: int
    fingerprint: DeviceFingerprint = field(compare=False)

    def speedup(self, name: str, reference: str = "teacher") -> float:
        """How many times faster ``name`` is than ``reference``, by medians."""
        return self.measurements[reference].median_ms / self.measurements[name].median_ms

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self) | {"fingerprint": self.fingerprint.as_dict()}, indent=2)

    def to_markdown(self, reference: str = "teacher") -> str:
        """The report as a Markdown table with a line that says how it was measured."""
        lines = ["| model | median (ms) | IQR (ms) | speed-up |", "| --- | --- | --- | --- |"]
        for name, measured in self.measurements.items():
            ratio = f"{self.speedup(name, reference):.2f}x" if reference in self.measurements else ""
            lines.append(f"| {name} | {measured.median_ms:.2f} | {measured.iqr_ms:.2f} | {ratio} |")
        return "\n".join([*lines, "", self.describe_method()])

    def describe_method(self) -> str:
        """One sentence on how the latencies were measured."""
        samples = min(measured.samples for measured in self.measurements.values())
        return _method(self.batch_size, self.sequence_length, self.threads, samples, self.fingerprint)


def _method(batch_size: int, sequence_length: int, threads: int, samples: int, fingerprint: DeviceFingerprint) -> str:
    return (
        f"PyTorch eager, float32, {batch_size} x {sequence_length} tokens, {threads} thread(s), models interleaved, "
        f"{samples} timed calls each after warm-up, on {fingerprint}."
    )


@dataclass
class LatencyBenchmark:
    """Measures models side by side: warm-up, pinned threads, calls interleaved so that drift hits all alike.

    Args:
        batch_size: Texts in a call.
        sequence_length: Tokens in a text.
        threads: CPU threads during the measurement; they are set back afterwards.
        repeats: Timed rounds; in each, every model is called once.
        warmup: Rounds that are not counted.
        device: A torch device.

    Raises:
        ValueError: If a value is not positive.
    """

    batch_size: int = 1
    sequence_length: int = 128
    threads: int = 1
    repeats: int = 15
    warmup: int = 3
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("batch_size", "sequence_length", "threads", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.warmup < 0:
            raise ValueError(f"warmup={self.warmup} must not be negative.")

    def describe_method(self) -> str:
        """One sentence on how latencies are measured."""
        fingerprint = DeviceFingerprint.of(self.device)
        return _method(self.batch_size, self.sequence_length, self.threads, self.repeats, fingerprint)

    def dummy_inputs(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Random token ids of a model's vocabulary without padding, ``(batch_size, sequence_length)``."""
        generator = DummyTextInputGenerator(
            "feature-extraction",
            NormalizedTextConfig(model.config),
            batch_size=self.batch_size,
            sequence_length=self.sequence_length,
        )
        input_ids = generator.generate("input_ids").clamp_(min=5)  # padding and other special tokens come first
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

    @torch.inference_mode()
    def measure(self, models: Mapping[str, nn.Module]) -> LatencyReport:
        """Measure models by name, in float32 as they are.

        Args:
            models: Encoders with a configuration; they are put in eval mode and moved to the device.

        Raises:
            ValueError: If a model has fewer positions than ``sequence_length``.
        """
        calls = {}
        for name, model in models.items():
            model.eval().to(self.device)
            inputs = {key: value.to(self.device) for key, value in self.dummy_inputs(model).items()}
            calls[name] = self._call(model, inputs)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        with _threads(self.threads):
            for _ in range(self.warmup):
                for call in calls.values():
                    call()
            for _ in range(self.repeats):
                for name, call in calls.items():
                    start = time.perf_counter()
                    call()
                    seconds[name].append(time.perf_counter() - start)
        return LatencyReport(
            measurements={name: LatencyMeasurement.from_seconds(values) for name, values in seconds.items()},
            batch_size=self.batch_size,
            sequence_length=self.sequence_length,
            threads=self.threads,
            fingerprint=DeviceFingerprint.of(self.device),
        )

    def _call(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> Callable[[], None]:
        def call() -> None:
            try:
                model(**inputs)
            except (IndexError, RuntimeError) as error:
                if "out of range" not in str(error) and "out of bounds" not in str(error):
                    raise
                positions = getattr(model.config, "max_position_embeddings", "unknown")
                raise ValueError(
                    f"sequence_length={self.sequence_length} is more than a model reads "
                    f"(max_position_embeddings={positions}); choose a smaller one."
                ) from error
            if self.device.startswith("cuda"):
                torch.cuda.synchronize()

        return call


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
