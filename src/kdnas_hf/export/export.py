"""Exports a student: artefact, check, latency and report, or a refusal that leaves what was there before."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..data import EMBEDDED_TEACHER_NAME, DataArguments
from ..evaluation import ModelSource, Task, load_task_data
from ..latency import LatencyReport, Runner, TorchRunner, stand_in
from ..utils.atomic_files import write_atomically
from ..utils.package_versions import package_versions
from .arguments import ExportArguments
from .artefacts import artefact_files, make_artefact, make_runner
from .backends import Backend, require_runtime
from .calibration import calibration_texts, text_batches
from .check import ArtefactCheck, compare_outputs
from .exported_model import ExportedModel
from .memory import peak_memory_mb
from .score import mean_score

logger = logging.get_logger(__name__)

EVIDENCE_FOLDER = "evidence"
REPORT_FOLDER = f"{EVIDENCE_FOLDER}/exports"
HEADS = {
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
}
TEACHER, STUDENT, EXPORTED = "teacher", "student", "exported"
EXPORTED_TEACHER = f"{EXPORTED} {TEACHER}"


class ExportError(RuntimeError):
    """An artefact that is worse than it may be, and was not kept."""


@dataclass(frozen=True)
class ArtefactRecord:
    """What is known of an artefact.

    Attributes:
        backend: What runs it, as `ExportedModel.from_pretrained` takes it.
        description: The backend in words.
        file: The artefact, relative to the student's directory.
        size_mb: Its files, in MB (10^6 bytes).
        checkpoint_mb: The weights of the checkpoint that it was made of.
        weights: Fingerprint of that checkpoint.
        check: How far it is from the checkpoint.
        calibration_sentences: Sentences that fixed the ranges of activations; 0 if none did.
        peak_memory_mb: Resident memory that it adds to a process; None where it could not be measured.
        torch_memory_mb: The same of the checkpoint in PyTorch.
        date: When it was made (UTC, ISO 8601).
        versions: Of the libraries.
    """

    backend: str
    description: str
    file: str
    size_mb: float
    checkpoint_mb: float
    weights: str
    check: ArtefactCheck
    calibration_sentences: int
    peak_memory_mb: float | None
    torch_memory_mb: float | None
    date: str
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportReport:
    """An artefact, and its latency beside that of its checkpoint and of its teacher.

    Attributes:
        record: The artefact.
        latency: ``student`` and ``teacher`` (PyTorch eager), ``exported`` and ``exported teacher``, side by side.
    """

    record: ArtefactRecord
    latency: LatencyReport

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps({"record": asdict(self.record), "latency": json.loads(self.latency.to_json())}, indent=2)

    def to_markdown(self) -> str:
        """The report as text."""
        record = self.record
        memory = [
            f"{name} {value:,.0f} MB"
            for name, value in (("exported", record.peak_memory_mb), ("PyTorch", record.torch_memory_mb))
            if value is not None
        ]
        lines = [
            f"### {record.description}",
            "",
            f"- File: `{record.file}`, {record.size_mb:,.1f} MB; the checkpoint has {record.checkpoint_mb:,.1f} MB.",
            f"- Against PyTorch in float32, {record.check.rows:,} outputs: {record.check}.",
        ]
        if memory:
            lines.append(f"- Memory that it adds to a process: {', '.join(memory)}.")
        reference = TEACHER if TEACHER in self.latency.measurements else STUDENT
        lines += ["", self.latency.to_markdown(reference), ""]
        if reference == TEACHER:
            equal = self.latency.speedup(EXPORTED, EXPORTED_TEACHER)
            lines.append(
                f"Exported, it is {self.latency.speedup(EXPORTED):.1f}x faster than its teacher in PyTorch eager, and "
                f"{equal:.1f}x faster than its teacher in the same backend."
            )
        return "\n".join(lines)


def export_student(args: ExportArguments, data_args: DataArguments) -> ExportReport:
    """Export a student as the arguments say; the artefact is kept only if the check finds nothing.

    Args:
        args: What is exported.
        data_args: Text for calibration and check.

    Returns:
        The report, which is also left beside the student.

    Raises:
        ExportError: If the artefact is worse than its bounds; nothing is left of it.
        FileNotFoundError: If there is no student.
        ImportError: If the runtime is not installed.
        ValueError: If the student has no tokenizer, or the text is too short.
    """
    folder = Path(args.student)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"student={args.student!r} holds no config.json: it is no model's directory.")
    backend = args.backend
    require_runtime(backend.runtime)
    tokenizer = ModelSource(str(folder)).load_tokenizer()
    model = load_with_head(folder)
    teacher = _teacher_stand_in(args, folder)
    _check_length(args, model.config, teacher)
    data = None
    if args.task is not None:
        data = load_task_data(Task.load(args.task), args.data_dir, max_test_examples=args.max_test_examples)
    max_length = min(128, tokenizer.model_max_length)
    calibration, checked = calibration_texts(data_args, args.calibration_sentences, args.check_sentences, args.seed)

    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as temporary:
        logger.info(f"exporting {folder} for {backend.description}")
        made = make_artefact(
            model,
            temporary,
            backend,
            text_batches(calibration, tokenizer, max_length=max_length) if backend.static else None,
            args.int8_embeddings,
            args.reduce_range,
        )
        exported = ExportedModel(made, backend, model.config)
        logger.info(f"comparing it with the checkpoint on {len(checked)} sentences")
        check = compare_outputs(exported, model, text_batches(checked, tokenizer, max_length=max_length))
        if data is not None:
            metric = data.task.metric
            scores = [mean_score(one, tokenizer, data, max_length) for one in (exported, model)]
            check = dataclasses.replace(check, score=scores[0], torch_score=scores[1], score_name=metric)
        del exported
        failures = check.failures(backend, args.min_cosine, args.max_score_drop)
        if failures:
            raise ExportError(f"{backend.description} is refused: {' '.join(failures)} Measured: {check}.")
        for replaced in [report_path(folder, backend.name), *artefact_files(folder, backend)]:
            replaced.unlink(missing_ok=True)  # also weights that another exporter laid beside the graph
        _move(artefact_files(temporary, backend), Path(temporary), folder)

    files = artefact_files(folder, backend)
    record = ArtefactRecord(
        backend=backend.name,
        description=backend.description,
        file=str(backend.file),
        size_mb=sum(path.stat().st_size for path in files) / 1e6,
        checkpoint_mb=sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6,
        weights=ModelSource(str(folder)).fingerprint(),
        check=check,
        calibration_sentences=len(calibration) if backend.static else 0,
        peak_memory_mb=_memory(args, folder, backend.name),
        torch_memory_mb=_memory(args, folder, "torch"),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=package_versions("torch", "transformers", "onnx", "onnxruntime", "openvino", "nncf"),
    )
    report = ExportReport(record, _measure(args, folder, backend, model, teacher))
    path = report_path(folder, backend.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, report.to_json() + "\n")
    return report


def read_exports(student: str | Path) -> list[ArtefactRecord]:
    """What is known of the artefacts of a student.

    Raises:
        ValueError: If a report is damaged.
    """
    found = []
    for path in sorted((Path(student) / REPORT_FOLDER).glob("*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))["record"]
            found.append(ArtefactRecord(**values | {"check": ArtefactCheck(**values["check"])}))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path} holds what this version does not write: {error}; export again.") from error
    return found


def load_with_head(folder: str | Path, dtype: Any = torch.float32) -> PreTrainedModel:
    """The model of a directory, with the head that its configuration names.

    Args:
        folder: The directory.
        dtype: Of the weights; ``auto`` is that in which they were saved.

    Raises:
        ValueError: If it cannot be loaded.
    """
    import transformers

    config = AutoConfig.from_pretrained(folder)
    kind = (getattr(config, "architectures", None) or [""])[0]
    auto: Any = AutoModel
    for ending, name in HEADS.items():
        if kind.endswith(ending):
            auto = getattr(transformers, name)
    try:
        return auto.from_pretrained(folder, dtype=dtype).eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"student={str(folder)!r} cannot be loaded: {error}") from error


def _teacher_stand_in(args: ExportArguments, folder: Path) -> PreTrainedModel | None:
    """A model of the teacher's shape; None if it is not wanted, or not known."""
    name = args.teacher
    if name == "none":
        return None
    if name is None:
        path = folder / EVIDENCE_FOLDER / "training.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        name = found.get("teacher_id")
        if name is None:
            logger.warning("no evidence names the student's teacher: its latency is not measured; give --teacher.")
            return None
        if found.get("teacher") == EMBEDDED_TEACHER_NAME:  # a copy of it that needs no download
            name = "embedded"
    try:
        config = AutoConfig.from_pretrained(ModelSource(name).location)
    except (OSError, ValueError, ImportError) as error:
        if args.teacher is None:
            logger.warning(f"teacher {name!r} cannot be loaded, and its latency is not measured: {error}")
            return None
        raise ValueError(f"teacher={name!r} cannot be loaded: {error}") from error
    return stand_in(type(AutoModel.from_config(_tiny(config))), config)


def _tiny(config: PretrainedConfig) -> PretrainedConfig:
    """Whose model is made at once: only its class is wanted."""
    return type(config).from_dict(config.to_dict() | {"num_hidden_layers": 1, "vocab_size": 8, "pad_token_id": 1})


def _check_length(args: ExportArguments, config: Any, teacher: PreTrainedModel | None) -> None:
    tokens = args.latency_sequence_length
    for name, one in ((STUDENT, config), (TEACHER, None if teacher is None else teacher.config)):
        positions = getattr(one, "max_position_embeddings", None)
        if positions is not None and tokens > positions:
            raise ValueError(f"latency_sequence_length={tokens} exceeds what the {name} reads ({positions} positions).")


def _measure(
    args: ExportArguments, folder: Path, backend: Backend, model: PreTrainedModel, teacher: PreTrainedModel | None
) -> LatencyReport:
    """Student and teacher in PyTorch and exported, side by side."""
    logger.info("measuring latency")
    threads = args.latency_threads
    with tempfile.TemporaryDirectory() as temporary:
        runners: dict[str, Runner] = {
            STUDENT: TorchRunner(model),
            EXPORTED: ExportedModel.from_pretrained(folder, backend, threads),
        }
        if teacher is not None:
            runners = {TEACHER: TorchRunner(teacher)} | runners
            runners[EXPORTED_TEACHER] = make_runner(teacher, backend, temporary, threads)
        return args.benchmark_of_calls().measure(runners)


def _memory(args: ExportArguments, folder: Path, backend: str) -> float | None:
    try:
        return peak_memory_mb(folder, backend, threads=args.latency_threads)
    except (RuntimeError, ImportError) as error:
        logger.warning(f"memory was not measured: {error}")
        return None


def _move(files: list[Path], source: Path, target: Path) -> None:
    for path in files:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)


def report_path(folder: Path, backend: str) -> Path:
    """Where the report of an artefact lies."""
    return folder / REPORT_FOLDER / f"{backend}.json"
