"""Latency of architectures as they will be deployed; of exported ones measured once on a machine, and kept."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..data.embedded_teacher import default_cache_dir
from ..distillation import Teacher
from ..export import get_backend, make_runner
from ..export.backends import TORCH
from ..latency import DeviceFingerprint, LatencyBenchmark, LatencyReport, stand_in
from ..students import KDNASConfig, KDNASModel
from ..utils.json_lines import JsonLines, JsonRecord
from ..utils.package_versions import package_versions
from .space import Architecture

logger = logging.get_logger(__name__)

LATENCIES_FILE = "latencies.jsonl"
TEACHER = "teacher"


@dataclass(frozen=True)
class ArchitectureLatency(JsonRecord):
    """Latency of an architecture, measured beside its teacher's in the same backend.

    Attributes:
        key: Of architecture, teacher's shape, backend, input, machine and libraries.
        median_ms: Median, in milliseconds.
        iqr_ms: Interquartile range, in milliseconds.
        teacher_ms: The teacher's median, in milliseconds.
    """

    key: str
    median_ms: float
    iqr_ms: float
    teacher_ms: float


class ArchitectureLatencies:
    """Measures architectures with random weights, as latency depends on the shape alone.

    In PyTorch all that are asked for are measured side by side, each time. In other backends each is exported first,
    which takes seconds: its latency is kept for other searches on this machine.

    Args:
        teacher: The teacher; a model of its shape is measured in the same backend.
        config_of: The configuration of a student of an architecture.
        benchmark: What measures.
        backend: A name of `kdnas_hf.export.BACKENDS`.
        cache_dir: Where latencies are kept; by default ``$KDNAS_HF_CACHE``, else ``~/.cache/kdnas_hf``.
    """

    def __init__(
        self,
        teacher: Teacher,
        config_of: Callable[[Architecture], KDNASConfig],
        benchmark: LatencyBenchmark,
        backend: str = "torch",
        cache_dir: str | Path | None = None,
    ) -> None:
        self.teacher = teacher
        self.config_of = config_of
        self.benchmark = benchmark
        self.backend = get_backend(backend)
        folder = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
        self._kept = JsonLines(folder / LATENCIES_FILE, ArchitectureLatency.from_json)

    def measure(self, architectures: Mapping[int, Architecture]) -> dict[int, ArchitectureLatency]:
        """Latencies by number, those that are kept and those that are measured now."""
        if self.backend.runtime == TORCH and self.backend.precision == "float32" and not self.backend.compiled:
            models = {TEACHER: self._teacher_model()}
            models |= {str(number): self._student(one) for number, one in architectures.items()}
            report = self.benchmark.measure(models)
            return {number: self._latency(report, number, one) for number, one in architectures.items()}
        before = {record.key: record for record in self._kept.read()}
        found = {number: before[key] for number, one in architectures.items() if (key := self._key(one)) in before}
        missing = {number: one for number, one in architectures.items() if number not in found}
        if not missing:
            return found
        logger.info(f"exporting {len(missing)} architecture(s) for {self.backend.description}, to measure latency")
        with tempfile.TemporaryDirectory() as folder:
            models = {TEACHER: self._teacher_model()}
            models |= {str(number): self._student(one) for number, one in missing.items()}
            report = self.benchmark.measure(
                {
                    name: make_runner(model, self.backend, Path(folder) / name, self.benchmark.threads)
                    for name, model in models.items()
                }
            )
        self._kept.path.parent.mkdir(parents=True, exist_ok=True)
        for number, architecture in missing.items():
            found[number] = self._latency(report, number, architecture)
            if not {TEACHER, str(number)} & set(report.noisy):
                self._kept.append(found[number])
        return found

    def describe(self) -> str:
        """One sentence on how latency is measured."""
        return self.benchmark.describe_method(self.backend.description)

    def _teacher_model(self) -> Any:
        return stand_in(type(self.teacher.model), self.teacher.model.config)

    def _student(self, architecture: Architecture) -> Any:
        return stand_in(KDNASModel, self.config_of(architecture))

    def _latency(self, report: LatencyReport, number: int, architecture: Architecture) -> ArchitectureLatency:
        measured, teacher = report.measurements[str(number)], report.measurements[TEACHER]
        return ArchitectureLatency(self._key(architecture), measured.median_ms, measured.iqr_ms, teacher.median_ms)

    def _key(self, architecture: Architecture) -> str:
        config = self.teacher.model.config
        shape = {
            name: getattr(config, name, None)
            for name in ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
        }
        told = {
            "student": architecture.as_dict(),
            "teacher": shape,
            "backend": self.backend.name,
            "input": [self.benchmark.batch_size, self.benchmark.sequence_length, self.benchmark.threads],
            "machine": DeviceFingerprint.of(self.benchmark.device).as_dict(),
            "libraries": package_versions("onnxruntime", "openvino", "nncf"),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:24]
