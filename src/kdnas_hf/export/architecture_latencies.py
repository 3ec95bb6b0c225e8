"""Latency of architectures as they will be deployed; of exported ones measured once on a machine, and kept."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..latency import DeviceFingerprint, Latency, LatencyBenchmark, LatencyReport, shares_of, stand_in
from ..students import Architecture, KDNASConfig, KDNASModel
from ..utils.cache_directory import default_cache_dir
from ..utils.json_lines import JsonLines, JsonRecord
from ..utils.package_versions import package_versions
from ..utils.random_state import drawing
from .artefacts import make_runner
from .backends import TORCH, Backend, get_backend
from .memory import peak_memory_mb
from .shape_costs import Sizes, shape_costs

logger = logging.get_logger(__name__)

LATENCIES_FILE = "latencies.jsonl"
TEACHER = "teacher"
# fields of a configuration that change no latency
_VOLATILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "teacher_layers")


@dataclass(frozen=True)
class _Kept(JsonRecord):
    """A latency under a digest of all that it depends on."""

    key: str
    median_ms: float
    iqr_ms: float
    teacher_ms: float


class ArchitectureLatencies:
    """Measures architectures with random weights, as latency depends on the shape alone.

    In PyTorch all that are asked for are measured side by side, each time. In other backends each is exported first,
    which takes seconds: its latency is kept for other searches on this machine. Architectures whose students are
    configured alike, but for the teacher layers that they keep, are measured once.

    Args:
        teacher: The teacher's model; one of its shape is measured in the same backend.
        config_of: The configuration of a student of an architecture.
        benchmark: What measures.
        backend: A name of `kdnas_hf.export.BACKENDS`.
        cache_dir: Where latencies are kept; by default ``$KDNAS_HF_CACHE``, else ``~/.cache/kdnas_hf``.

    Raises:
        ValueError: If the backend does not run on the benchmark's device.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        config_of: Callable[[Architecture], KDNASConfig],
        benchmark: LatencyBenchmark,
        backend: str = "torch",
        cache_dir: str | Path | None = None,
    ) -> None:
        self.teacher = teacher
        self.config_of = config_of
        self.benchmark = benchmark
        self.backend = get_backend(backend)
        if self.backend.runtime != TORCH and benchmark.device != "cpu":
            raise ValueError(
                f"device={benchmark.device!r}: {backend} runs on the CPU; choose 'cpu', or a torch backend."
            )
        folder = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
        self._kept = JsonLines(folder / LATENCIES_FILE, _Kept.from_json)

    def measure(self, architectures: Mapping[int, Architecture], repeats: int | None = None) -> dict[int, Latency]:
        """Latencies by number; given ``repeats``, of so many calls each, all side by side now, whatever is kept."""
        keys = {number: self._key(one) for number, one in architectures.items()}
        before = self._kept.read() if self._exports and repeats is None else []
        found = {kept.key: Latency(kept.median_ms, kept.iqr_ms, kept.teacher_ms) for kept in before}
        missing: dict[str, str] = {}
        for number, key in keys.items():
            if key not in found:
                missing.setdefault(key, str(number))
        if missing:
            report = self._time({name: architectures[int(name)] for name in missing.values()}, repeats)
            teacher = report.measurements[TEACHER]
            for key, name in missing.items():
                student = report.measurements[name]
                found[key] = Latency(student.median_ms, student.iqr_ms, teacher.median_ms)
                if self._exports and not {TEACHER, name} & set(report.noisy):
                    self._kept.path.parent.mkdir(parents=True, exist_ok=True)
                    self._kept.append(_Kept(key, *astuple(found[key])))
        return {number: found[key] for number, key in keys.items()}

    def measure_memory(self, architectures: Mapping[int, Architecture]) -> dict[int, float]:
        """Peak memory of a call by number, in MB (10^6 bytes): as deployed on a CPU, in a process of its own each."""
        found = {}
        benchmark, longest = self.benchmark, max(shares_of(self.benchmark.sequence_length))
        for number, architecture in architectures.items():
            with tempfile.TemporaryDirectory() as folder:
                with drawing(0):
                    model = KDNASModel(self.config_of(architecture))
                model.save_pretrained(folder)
                if self.backend.file is not None:
                    make_runner(model, self.backend, folder)
                del model
                found[number] = peak_memory_mb(folder, self.backend, benchmark.batch_size, longest, benchmark.threads)
        return found

    def shape_costs(self, architectures: Sequence[Architecture]) -> dict[str, np.ndarray]:
        """What shapes cost as deployed: `kdnas_hf.export.shape_costs`, ``(architectures,)`` each."""
        return costs_of_shapes(architectures, self.config_of(architectures[0]), self.backend, self.benchmark)

    def describe(self) -> str:
        """One sentence on how latency is measured."""
        return self.benchmark.describe_method(self.backend.description)

    @property
    def _exports(self) -> bool:
        return self.backend.name != "torch"

    def _time(self, architectures: Mapping[str, Architecture], repeats: int | None) -> LatencyReport:
        benchmark = self.benchmark if repeats is None else replace(self.benchmark, repeats=repeats)
        models: dict[str, Any] = {TEACHER: stand_in(type(self.teacher), self.teacher.config)}
        models |= {name: stand_in(KDNASModel, self.config_of(one)) for name, one in architectures.items()}
        if not self._exports:
            return benchmark.measure(models)
        logger.info(f"exporting {len(architectures)} architecture(s) for {self.backend.description}, to time them")
        how = (benchmark.threads, benchmark.device)
        with tempfile.TemporaryDirectory() as folder:
            runners = {name: make_runner(one, self.backend, Path(folder) / name, *how) for name, one in models.items()}
            return benchmark.measure(runners)

    def _key(self, architecture: Architecture) -> str:
        benchmark = self.benchmark
        told = {
            "student": _shape(self.config_of(architecture)),
            "teacher": [type(self.teacher).__name__, _shape(self.teacher.config)],
            "backend": self.backend.name,
            "input": [benchmark.batch_size, sorted(shares_of(benchmark.sequence_length).items()), benchmark.throughput],
            "machine": [benchmark.threads, DeviceFingerprint.of(benchmark.device).as_dict()],
            "libraries": package_versions("onnxruntime", "openvino", "nncf"),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:24]


def costs_of_shapes(
    architectures: Sequence[Architecture], config: KDNASConfig, backend: str | Backend, benchmark: LatencyBenchmark
) -> dict[str, np.ndarray]:
    """What architectures cost by their shapes (`kdnas_hf.export.shape_costs`), ``(architectures,)`` each.

    Args:
        architectures: The shapes.
        config: Configuration of one of them, for what is the same for all.
        backend: What they are deployed with.
        benchmark: The input that it measures.
    """
    sizes = [
        (one.num_hidden_layers, one.hidden_size, sum(one.per_layer("intermediate_size")), one.word_embedding_size)
        for one in architectures
    ]
    how = (backend, benchmark.batch_size, benchmark.sequence_length)
    return shape_costs(config, *how, Sizes(*np.array(sizes, dtype=float).T))


def _shape(config: PretrainedConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _VOLATILE}
