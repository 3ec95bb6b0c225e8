"""Leaves evidence and card beside the students that a recipe made."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoModel

from ..distillation import DistillationTrainingArguments, Teacher
from ..export import ExportReport, make_runner
from ..export.export import EXPORTED, EXPORTED_TEACHER, TEACHER
from ..latency import LatencyBenchmark, stand_in
from ..search import SearchArguments, SearchResult
from .evidence import EVIDENCE_FOLDER, TRAINING_FILE, TrainingSetup, record_latency, record_search, record_training
from .model_card import write_model_card

LATENCY_TOKENS = 128


def document_search(
    result: SearchResult,
    setup: TrainingSetup,
    search_args: SearchArguments,
    training_args: DistillationTrainingArguments,
    space: int,
) -> list[Path]:
    """Evidence and card of every student that a search distilled; evidence that is there already stays.

    The latency of each is measured once more, with its teacher's: that of the search was one of many from which the
    best was chosen, and is the lower for it.

    Args:
        result: The search.
        setup: Of the distillation.
        search_args: Of the search.
        training_args: Of the distillation.
        space: Members of the search space.

    Returns:
        The cards.
    """
    benchmark = search_args.benchmark_of_calls()
    cards = []
    for student in result.students:
        folder = result.folder / student.path
        if not (folder / EVIDENCE_FOLDER / TRAINING_FILE).is_file():
            record_search(folder, result, student, search_args, space)
            measure_latency(folder, setup.teacher, benchmark)
            if search_args.latency_backend != "torch":
                measure_latency(folder, setup.teacher, benchmark, search_args.latency_backend)
            metrics = {f"eval_r2_layer_{layer}": r2 for layer, r2 in student.quality_per_layer.items()}
            if metrics:  # hidden states were learned, and quality is R²
                metrics["eval_r2"] = student.quality
            record_training(folder, setup, training_args, student.tokens, metrics, result.log_history)
        cards.append(write_model_card(folder))
    return cards


def document_distillation(
    student: str | Path,
    setup: TrainingSetup,
    training_args: DistillationTrainingArguments,
    metrics: Mapping[str, float],
    log_history: Sequence[Mapping[str, Any]],
) -> Path:
    """Evidence and card of a student whose shape was chosen by hand.

    Args:
        student: The student's directory.
        setup: Of the distillation.
        training_args: Of the distillation.
        metrics: What the trainer's last evaluation measured.
        log_history: What it logged.

    Returns:
        The card.
    """
    positions = getattr(setup.teacher.model.config, "max_position_embeddings", LATENCY_TOKENS + 2)
    # two rows less: encoders like XLM-R count positions from the row after that of padding
    measure_latency(student, setup.teacher, LatencyBenchmark(sequence_length=min(LATENCY_TOKENS, positions - 2)))
    record_training(student, setup, training_args, int(metrics["eval_trained_tokens"]), metrics, log_history)
    return write_model_card(student)


def document_export(student: str | Path, report: ExportReport) -> Path:
    """Evidence and card of a student that was exported: its latency beside its teacher's, in equal backends and not.

    Args:
        student: The student's directory.
        report: Of the export.

    Returns:
        The card.
    """
    if TEACHER in report.latency.measurements:
        record_latency(student, report.latency, EXPORTED, EXPORTED_TEACHER)
        record_latency(student, report.latency, EXPORTED, TEACHER)
    return write_model_card(student)


def measure_latency(student: str | Path, teacher: Teacher, benchmark: LatencyBenchmark, backend: str = "torch") -> None:
    """Time a student beside its teacher, and keep the result as evidence.

    Args:
        student: The student's directory.
        teacher: The teacher; one of its shape with random weights is timed, as it may be on another device.
        benchmark: What measures.
        backend: In which both run; what is exported for it is not kept.
    """
    models = {
        "teacher": stand_in(type(teacher.model), teacher.model.config),
        "student": AutoModel.from_pretrained(student, dtype="float32"),
    }
    with tempfile.TemporaryDirectory() as folder:
        runners = {
            name: make_runner(model, backend, Path(folder) / name, benchmark.threads, benchmark.device)
            for name, model in models.items()
        }
        record_latency(student, benchmark.measure(runners))


def languages_of(corpus: datasets.Dataset) -> list[str]:
    """The languages of a text, where it says them."""
    if "language" not in corpus.column_names:
        return []
    return sorted({language for language in corpus["language"] if language})
