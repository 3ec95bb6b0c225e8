"""What is known of a student: how it was trained, found, timed and scored, kept beside it in public form.

A student's directory holds the folder ``evidence/``; its card is made of that and of ``config.json`` alone, so that a
number without a measurement behind it cannot get there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import logging

from ..data import DataArguments
from ..data.local_files import find_local_files
from ..distillation import DistillationTrainingArguments, Teacher, TeacherArguments, training_configuration
from ..evaluation import EvaluationResults
from ..evaluation.embeddings import EmbeddingResults
from ..export import ArtefactRecord, read_exports
from ..export.budgets import Budget
from ..latency import DeviceFingerprint, LatencyReport, describe_lengths
from ..search import DistilledStudent, SearchArguments, SearchResult
from ..search.report import PLOT_FILE as PARETO_PLOT
from ..search.report import Comparison, compare
from ..search.result import Confirmation, best_known
from ..search.trial import Trial
from ..students import Architecture
from ..utils.atomic_files import write_atomically
from ..utils.package_versions import package_versions
from ..utils.sentence_head import SentenceHead
from .public_text import public, public_command, public_values

logger = logging.get_logger(__name__)

EVIDENCE_FOLDER = "evidence"
TRAINING_FILE = "training.json"
SEARCH_FILE = "search.json"
TRIALS_FILE = "architectures.jsonl"
LATENCY_FILE = "latency.json"
EVALUATIONS_FILE = "evaluations.json"
VECTORS_FILE = "embeddings.json"
COMPRESSION_FILE = "compression.json"
EMBEDDED_TEACHER_ID = "intfloat/multilingual-e5-small"
EMBEDDED_TEXTS = "the embedded sentences of kdnas_hf (home-assistant-intents, chatterbot-corpus)"


@dataclass(frozen=True)
class CurvePoint:
    """A point of a training curve.

    Attributes:
        step: Optimizer steps so far.
        tokens: Real tokens so far; None where it was not counted.
        loss: Mean training loss since the point before.
    """

    step: int
    loss: float
    tokens: int | None = None


@dataclass(frozen=True)
class TrainingEvidence:
    """How a student was distilled.

    Attributes:
        teacher: What the teacher is called.
        teacher_id: Its id on the Hub; None if it has none.
        teacher_revision: The revision that was asked for.
        teacher_license: Its licence as its card gives it; None if that is not known.
        texts: Where the text came from.
        datasets: Those of them that are datasets of the Hub.
        languages: Languages of the text; empty if they are not known.
        sentences: Training texts.
        max_length: Longest text in tokens.
        heldout_sentences: Texts that were kept out of training.
        losses: Losses with their weights.
        settings: What else changes what is learnt, as `DistillationTrainingArguments` calls it.
        seed: The seed.
        tokens: Real tokens that the student was trained on, repetitions counted.
        r2: R² of the last mapped layer on held-out text.
        r2_per_layer: R² of each mapped layer.
        curve: Of the training loss.
        seconds: Wall-clock time of the distillation; None if it is not known.
        processes: Processes that trained together.
        command: The command that made it.
        date: When it ended (UTC, ISO 8601).
        weights: Fingerprint of the weights that were saved.
        device: What it was trained on.
        versions: Of the libraries.
    """

    teacher: str
    teacher_id: str | None
    teacher_revision: str | None
    teacher_license: str | None
    texts: list[str]
    datasets: list[str]
    languages: list[str]
    sentences: int
    max_length: int
    heldout_sentences: int
    losses: list[str]
    settings: dict[str, Any]
    seed: int
    tokens: int
    r2: float | None
    r2_per_layer: dict[str, float]
    curve: list[CurvePoint]
    seconds: float | None
    processes: int
    command: list[str]
    date: str
    weights: str
    device: str
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingSetup:
    """What a distillation starts from, as far as a card tells it.

    Attributes:
        teacher: The teacher.
        teacher_args: As which it was asked for: its id and revision are named.
        data_args: The text.
        sentences: Training texts.
        languages: Languages of the text, where they are known.
        command: The command that runs; by default that of this process.
    """

    teacher: Teacher
    teacher_args: TeacherArguments
    data_args: DataArguments
    sentences: int
    languages: Sequence[str] = ()
    command: Sequence[str] = field(default_factory=lambda: list(sys.argv))

    @property
    def texts(self) -> list[str]:
        """What the text is called."""
        return names_of(self.data_args)


@dataclass(frozen=True)
class SearchEvidence:
    """How a student's shape was found.

    Attributes:
        architecture: Its shape.
        rank: Its place among the students that the search distilled, from 1, by reward.
        controller: Who chose the candidates.
        space: Members of the search space.
        budget: Limits on every student, by the names of `Budget`'s fields; empty if there were none.
        latency_method: How latency was measured during the search.
        seconds: Wall-clock time by stage.
        trials: Every architecture that was chosen.
        confirmations: The shapes that were measured again with further seeds, and those that they were compared with.
        label: What quality is called: ``"R²"`` where hidden states were learned, ``"intents probe"`` of a probe.
    """

    architecture: Architecture
    rank: int
    controller: str
    space: int
    budget: dict[str, float]
    latency_method: str
    seconds: dict[str, float]
    trials: list[Trial]
    confirmations: list[Confirmation]
    label: str = "R²"

    @property
    def constraint(self) -> Budget:
        """The hard constraint."""
        return Budget(**self.budget)

    @property
    def shape(self) -> Confirmation | None:
        """What is known of this shape, with further seeds if there are any."""
        return next(
            (one for one in best_known(self.trials, self.confirmations) if one.architecture == self.architecture), None
        )

    @property
    def is_confirmed(self) -> bool:
        """Whether this shape was measured again."""
        return any(one.architecture == self.architecture for one in self.confirmations)

    @property
    def comparison(self) -> Comparison | None:
        """This shape against rules of thumb and random ones; None if it was not confirmed, or had no opponent."""
        return compare(self.confirmations, winner=self.architecture, label=self.label)


@dataclass(frozen=True)
class LatencyEvidence:
    """One latency measurement, of teacher and student side by side.

    Attributes:
        backend: What ran the models, and in which precision.
        batch_size: Texts in a call.
        sequence_length: Tokens in a text, or several lengths with their shares.
        threads: CPU threads.
        samples: Timed calls of each model.
        student_ms: The student's median, in milliseconds.
        student_iqr_ms: Its interquartile range.
        teacher_ms: The teacher's median.
        teacher_iqr_ms: Its interquartile range.
        device: The machine.
        teacher_backend: What ran the teacher, where it was not the same; None where it was.
    """

    backend: str
    batch_size: int
    sequence_length: str
    threads: int
    samples: int
    student_ms: float
    student_iqr_ms: float
    teacher_ms: float
    teacher_iqr_ms: float
    device: str
    teacher_backend: str | None = None

    @property
    def speedup(self) -> float:
        """How many times faster than the teacher the student is, by medians."""
        return self.teacher_ms / self.student_ms


@dataclass(frozen=True)
class CompressionEvidence:
    """How a student was made smaller after its distillation.

    Attributes:
        texts: The text that decided what stays.
        vocab_size_before: Tokens before.
        vocab_size: Tokens now.
        embedding_size_before: Size of the word embeddings before.
        embedding_size: Size of the word embeddings now.
        bytes_before: Of the weights before.
        bytes: Of the weights now.
        kept_variance: Share of the variance of the word embeddings that was kept, as the text weighs them; 1 if they
            were not factorised.
        dimension_before: Of its sentence vectors before; None where it makes none.
        dimension: Of them now.
        neighbours_kept: By number of dimensions, the share of held-out sentences whose nearest other one stays the same
            where the sentence vectors are cut off there; empty if they were not shortened.
        heldout_sentences: Sentences that decided nothing, on which the rest was measured.
        split_alike: Share of them that are split into tokens as before.
        unknown_before: Share of unknown tokens in them before.
        unknown: Share of unknown tokens in them now.
        cosine: Mean cosine of their mean hidden states to those of the student before.
        lowest_cosine: The lowest of these.
        r2: R² of their mean hidden states, against those of the student before.
        command: The command that made it.
        date: When (UTC, ISO 8601).
        versions: Of the libraries.
    """

    texts: list[str]
    vocab_size_before: int
    vocab_size: int
    embedding_size_before: int
    embedding_size: int
    bytes_before: int
    bytes: int
    kept_variance: float
    dimension_before: int | None
    dimension: int | None
    neighbours_kept: dict[str, float]
    heldout_sentences: int
    split_alike: float
    unknown_before: float
    unknown: float
    cosine: float
    lowest_cosine: float
    r2: float
    command: list[str]
    date: str
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StudentEvidence:
    """All that is known of a student.

    Attributes:
        config: Its configuration.
        training: How it was distilled; None if that is not known.
        search: How its shape was found; None if it was chosen by hand, or that is not known.
        latency: Latency measurements.
        evaluations: Scores on downstream tasks: what each evaluation found, no task in two of them.
        vectors: Scores of its sentence vectors as they are; None if they were not scored.
        exports: Its artefacts.
        compression: How it was made smaller after its distillation; None if it was not.
        sentence_head: What makes its sentence vectors; None if it makes none.
    """

    config: PretrainedConfig
    training: TrainingEvidence | None = None
    search: SearchEvidence | None = None
    latency: list[LatencyEvidence] = field(default_factory=list)
    evaluations: list[EvaluationResults] = field(default_factory=list)
    vectors: EmbeddingResults | None = None
    exports: list[ArtefactRecord] = field(default_factory=list)
    compression: CompressionEvidence | None = None
    sentence_head: SentenceHead | None = None

    @classmethod
    def load(cls, student: str | Path) -> StudentEvidence:
        """Read a student's configuration and evidence.

        Raises:
            FileNotFoundError: If there is no such student.
            ValueError: If a file of the evidence is damaged.
        """
        folder = Path(student)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{str(student)!r} holds no config.json: it is no student's directory.")
        evidence = folder / EVIDENCE_FOLDER
        training = _read(evidence / TRAINING_FILE)
        search = _read(evidence / SEARCH_FILE)
        compression = _read(evidence / COMPRESSION_FILE)
        try:
            return cls(
                config=AutoConfig.from_pretrained(folder),
                training=training
                and TrainingEvidence(**training | {"curve": [CurvePoint(**point) for point in training["curve"]]}),
                search=search
                and SearchEvidence(
                    **search
                    | {
                        "architecture": Architecture(**search["architecture"]),
                        "confirmations": [Confirmation.from_dict(one) for one in search["confirmations"]],
                    },
                    trials=_read_trials(evidence / TRIALS_FILE),
                ),
                latency=[LatencyEvidence(**row) for row in _read(evidence / LATENCY_FILE) or []],
                evaluations=_read_evaluations(evidence / EVALUATIONS_FILE),
                vectors=_read_vectors(evidence / VECTORS_FILE),
                exports=read_exports(folder),
                compression=compression and CompressionEvidence(**compression),
                sentence_head=SentenceHead.load(folder, field="student"),
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{evidence} holds what this version does not write: {error}; remove it.") from error


# ---- writing ----


def record_training(
    student: str | Path,
    setup: TrainingSetup,
    training_args: DistillationTrainingArguments,
    tokens: int,
    metrics: Mapping[str, float],
    log_history: Sequence[Mapping[str, Any]],
) -> TrainingEvidence:
    """Keep how a student was distilled.

    Args:
        student: The student's directory.
        setup: Of the distillation.
        training_args: Of the distillation.
        tokens: Real tokens that the student was trained on.
        metrics: Of its last evaluation, as `DistillationTrainer` names them; what it lacks was not measured.
        log_history: What the trainer logged, `TrainerState.log_history`.
    """
    layer = "eval_r2_layer_"
    folder = Path(student) / EVIDENCE_FOLDER
    before = _read(folder / TRAINING_FILE) or {}
    weights = _weights(Path(student))
    if before.get("weights") != weights:
        for name in (EVALUATIONS_FILE, VECTORS_FILE):  # scores of other weights
            (folder / name).unlink(missing_ok=True)
        before = {}
    evidence = TrainingEvidence(
        teacher=public(setup.teacher.name),
        teacher_id=teacher_id(setup.teacher_args.teacher),
        teacher_revision=setup.teacher_args.teacher_revision,
        teacher_license=teacher_license(setup.teacher_args.teacher),
        texts=setup.texts,
        datasets=[name for name in setup.data_args.dataset if _is_hub_id(name)],
        languages=sorted({language for language in setup.languages if language}),
        sentences=setup.sentences,
        max_length=setup.data_args.max_length,
        heldout_sentences=setup.data_args.heldout_sentences,
        losses=[f"{name}:{weight:g}" for name, weight in training_args.loss_weights.items()],
        settings=public_values(training_configuration(training_args)),
        seed=training_args.seed,
        tokens=tokens,
        r2=metrics.get("eval_r2"),
        r2_per_layer={key.removeprefix(layer): value for key, value in metrics.items() if key.startswith(layer)},
        curve=training_curve(log_history),
        seconds=training_seconds(log_history),
        processes=training_args.world_size,
        command=public_command(setup.command),
        date=before.get("date") or datetime.now(UTC).isoformat(timespec="seconds"),
        weights=weights,
        device=str(DeviceFingerprint.of("cuda" if torch.cuda.is_available() else "cpu")),
        versions=package_versions("torch", "transformers", "accelerate", "datasets"),
    )
    _write(folder / TRAINING_FILE, asdict(evidence))
    return evidence


def record_search(
    student: str | Path, result: SearchResult, found: DistilledStudent, args: SearchArguments, space: int
) -> SearchEvidence:
    """Keep how a student's shape was found: trials, confirmations, the plot and the search's own figures.

    Args:
        student: The student's directory.
        result: The search.
        found: The student among those that it distilled.
        args: Of the search.
        space: Members of the search space.
    """
    evidence = SearchEvidence(
        architecture=found.architecture,
        rank=result.students.index(found) + 1,
        controller=args.controller,
        space=space,
        budget=args.budget.limits,
        latency_method=result.latency_method,
        seconds=dict(result.cost),
        trials=list(result.trials),
        confirmations=list(result.confirmations),
        label=result.quality_label,
    )
    write_search(student, evidence)
    if (result.folder / PARETO_PLOT).is_file():
        shutil.copyfile(result.folder / PARETO_PLOT, Path(student) / EVIDENCE_FOLDER / PARETO_PLOT)
    return evidence


def write_search(student: str | Path, evidence: SearchEvidence) -> None:
    """Write what `record_search` keeps, but the plot, into a student's directory."""
    folder = Path(student) / EVIDENCE_FOLDER
    values = vars(evidence) | {
        "architecture": evidence.architecture.as_dict(),
        "confirmations": [one.to_dict() for one in evidence.confirmations],
    }
    del values["trials"]
    _write(folder / SEARCH_FILE, values)
    write_atomically(folder / TRIALS_FILE, "".join(f"{trial.to_json()}\n" for trial in evidence.trials))


def record_latency(
    student: str | Path, report: LatencyReport, name: str = "student", teacher: str = "teacher"
) -> list[LatencyEvidence]:
    """Keep a latency measurement; one of the same kind on the same machine replaces that before.

    Args:
        student: The student's directory.
        report: With the measurements of both.
        name: What the student is called in it.
        teacher: What its teacher is called in it.
    """
    path = Path(student) / EVIDENCE_FOLDER / LATENCY_FILE
    mine, teachers = report.measurements[name], report.measurements[teacher]
    measured = LatencyEvidence(
        backend=mine.backend,
        batch_size=report.batch_size,
        sequence_length=describe_lengths(report.sequence_length),
        threads=report.threads,
        samples=min(mine.samples, teachers.samples),
        student_ms=mine.median_ms,
        student_iqr_ms=mine.iqr_ms,
        teacher_ms=teachers.median_ms,
        teacher_iqr_ms=teachers.iqr_ms,
        device=str(report.fingerprint) + (" (noisy)" if {name, teacher} & set(report.noisy) else ""),
        teacher_backend=None if teachers.backend == mine.backend else teachers.backend,
    )

    def kind(row: LatencyEvidence) -> tuple[Any, ...]:
        machine = row.device.removesuffix(" (noisy)")
        return row.backend, row.teacher_backend, row.batch_size, row.sequence_length, row.threads, machine

    rows = [LatencyEvidence(**values) for values in _read(path) or []]
    rows = [row for row in rows if kind(row) != kind(measured)] + [measured]
    _write(path, [asdict(row) for row in rows])
    return rows


def record_evaluation(student: str | Path, results: EvaluationResults) -> None:
    """Keep scores on downstream tasks in public form; of tasks that were scored before, the new scores count."""
    path = Path(student) / EVIDENCE_FOLDER / EVALUATIONS_FILE
    kept = []
    for before in _read_evaluations(path):
        tasks = {name: task for name, task in before.tasks.items() if name not in results.tasks}
        if tasks:
            kept.append(dataclasses.replace(before, tasks=tasks))
    _write(path, [public_values(one.as_dict()) for one in [*kept, results]])


def record_vectors(student: str | Path, results: EmbeddingResults) -> None:
    """Keep scores of sentence vectors in public form; of tasks that were scored before, the new scores count."""
    path = Path(student) / EVIDENCE_FOLDER / VECTORS_FILE
    before = _read_vectors(path)
    tasks = {} if before is None else before.tasks
    _write(path, public_values(asdict(dataclasses.replace(results, tasks={**tasks, **results.tasks}))))


def record_compression(student: str | Path, source: str | Path, compression: CompressionEvidence) -> None:
    """Keep how a student was made smaller, and what stays true of the evidence of the one before.

    That is how it was distilled. What was measured of it is left behind, as its weights are others: R², latency,
    scores, and the search that compared it with others.

    Args:
        student: The directory of the smaller student.
        source: That of the student before.
        compression: How.
    """
    folder = Path(student) / EVIDENCE_FOLDER
    training = _read(Path(source) / EVIDENCE_FOLDER / TRAINING_FILE)
    if training is not None:
        changed: dict[str, Any] = {"r2": None, "r2_per_layer": {}, "weights": _weights(Path(student))}
        _write(folder / TRAINING_FILE, training | changed)
    _write(folder / COMPRESSION_FILE, asdict(compression))


# ---- what is known without being asked ----


def names_of(data_args: DataArguments) -> list[str]:
    """What a text is called in public."""
    if data_args.text_name:
        return [data_args.text_name]
    return [EMBEDDED_TEXTS if name == "embedded" else public(name) for name in data_args.dataset]


def training_curve(log_history: Sequence[Mapping[str, Any]]) -> list[CurvePoint]:
    """The training losses that a trainer logged."""
    return [
        CurvePoint(step=int(entry["step"]), loss=float(entry["loss"]), tokens=entry.get("trained_tokens"))
        for entry in log_history
        if "loss" in entry
    ]


def training_seconds(log_history: Sequence[Mapping[str, Any]]) -> float | None:
    """Wall-clock time of a training; None if a part of it was not timed."""
    training = [entry for entry in log_history if "loss" in entry]
    if not training or any("elapsed_seconds" not in entry for entry in training):
        return None
    return max(entry["elapsed_seconds"] for entry in log_history if "elapsed_seconds" in entry)


def teacher_id(teacher: str) -> str | None:
    """A teacher's id on the Hub; None of a local directory."""
    if teacher == "embedded":
        return EMBEDDED_TEACHER_ID
    return None if Path(teacher).exists() else teacher


def teacher_license(teacher: str) -> str | None:
    """The licence of a teacher as its card gives it; None if there is no card to be had, or it names none."""
    if teacher == "embedded":
        return "mit"
    path = Path(teacher) / "README.md"
    try:
        if Path(teacher).exists():
            card = huggingface_hub.ModelCard.load(path) if path.is_file() else None
        else:
            card = huggingface_hub.ModelCard.load(teacher)
    except Exception as error:  # a card is a courtesy: without a network, or malformed, it stays unknown
        logger.info(f"the licence of {teacher} is not known: {error}")
        return None
    given = card.data.get("license") if card is not None else None
    return given if isinstance(given, str) else None


def _is_hub_id(name: str) -> bool:
    try:
        return name != "embedded" and not Path(name).exists() and find_local_files(name) is None
    except (FileNotFoundError, ValueError):  # files that are no longer there
        return False


def _read_trials(path: Path) -> list[Trial]:
    try:
        return [Trial.from_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove {path.with_name(SEARCH_FILE)}.") from error


def _read_evaluations(path: Path) -> list[EvaluationResults]:
    return [EvaluationResults.from_dict(values) for values in _read(path) or []]


def _read_vectors(path: Path) -> EmbeddingResults | None:
    values = _read(path)
    return None if values is None else EmbeddingResults.from_dict(values)


def _weights(student: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(student.glob("model*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and measure again.") from error


def _write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
