"""Arguments that say whose latency is measured, and how."""

# No `from __future__ import annotations`: HfArgumentParser reads the types of these fields.

from dataclasses import dataclass, field

from ..utils.choices import check_choice
from .benchmark import LatencyBenchmark
from .sequence_lengths import parse_lengths


@dataclass
class TimedCallArguments:
    """The calls that are timed."""

    latency_batch_size: int = field(default=1, metadata={"help": "Texts in a call whose latency is measured."})
    latency_sequence_length: int = field(default=128, metadata={"help": "Tokens in a text whose latency is measured."})
    latency_threads: int = field(default=1, metadata={"help": "CPU threads while latency is measured."})
    latency_repeats: int = field(default=15, metadata={"help": "Timed calls of each model."})

    def benchmark_of_calls(self) -> LatencyBenchmark:
        """Measures the latency of these calls on the CPU, one after the other."""
        return LatencyBenchmark(
            batch_size=self.latency_batch_size,
            sequence_length=self.latency_sequence_length,
            threads=self.latency_threads,
            repeats=self.latency_repeats,
        )


@dataclass
class LatencyArguments(TimedCallArguments):
    """Whose latency counts, and how it is measured.

    Raises:
        ValueError: If it cannot be measured like that.
    """

    latency_backend: str = field(
        default="torch",
        metadata={
            "help": "Whose latency counts, of teacher and students alike: torch (eager, float32), or another of "
            "kdnas_hf.export.BACKENDS as you will deploy it, like openvino-int8 or onnx-int8."
        },
    )
    latency_device: str = field(default="cpu", metadata={"help": "Where latency is measured, with torch: cpu, cuda."})
    latency_measure: str = field(
        default="latency",
        metadata={"help": "latency, the median time of a call, or throughput, the time of a text in a full batch."},
    )
    latency_lengths: list[str] | None = field(
        default=None,
        metadata={
            "help": "Several lengths with weights, like 32:3 128:1: the latency is the weighted mean; in place of "
            "latency_sequence_length."
        },
    )

    def __post_init__(self) -> None:
        check_choice("latency_measure", self.latency_measure, ("latency", "throughput"))
        _ = self.latency_benchmark

    @property
    def latency_benchmark(self) -> LatencyBenchmark:
        """Measures what is optimized as these arguments say: latency, or the time of a text in a full batch."""
        return self._benchmark(throughput=self.latency_measure == "throughput")

    def benchmark_of_calls(self) -> LatencyBenchmark:
        """Measures the latency of the same calls, whatever is optimized."""
        return self._benchmark(throughput=False)

    def _benchmark(self, throughput: bool) -> LatencyBenchmark:
        lengths = parse_lengths(self.latency_lengths) if self.latency_lengths else self.latency_sequence_length
        return LatencyBenchmark(
            batch_size=self.latency_batch_size,
            sequence_length=lengths,
            threads=self.latency_threads,
            repeats=self.latency_repeats,
            device=self.latency_device,
            throughput=throughput,
        )
