"""Compares teacher, student and others on downstream tasks, resumed where it was interrupted."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from tqdm.auto import tqdm
from transformers.utils import logging

from ..latency import LatencyBenchmark
from ..students.task_heads import SEQUENCE_CLASSIFICATION
from ..utils.atomic_files import write_atomically
from ..utils.json_lines import JsonLines
from ..utils.package_versions import package_versions
from ..utils.run_directory import check_writable, settle_configuration
from .arguments import RANDOM, EvaluationArguments
from .finetuning import FineTuned, ModelSource, fine_tune, score_languages
from .metrics import METRICS
from .report import write_report
from .results import (
    STUDENT,
    TASK_KD,
    TEACHER,
    EvaluationResults,
    FineTuningRecord,
    TaskScores,
    best_learning_rate,
    summarise_task,
)
from .task import Task
from .task_data import TaskData, load_task_data
from .task_distillation import distil_on_task, load_tuned, save_tuned

logger = logging.get_logger(__name__)

LEDGER_FILE = "finetunings.jsonl"
TUNED_TEACHERS = "tuned_teachers"
MEASUREMENTS_FILE = "measurements.json"
# they add to what was measured, or change nothing of it
NEUTRAL = ("tasks", "task_distillation", "seeds", "checkpoints", "cpu_threads", "output_dir", "update_card")


class Comparison:
    """Fine-tunes every model on every task with every seed, and adds up the scores.

    Each fine-tuning is on the disk the moment it is done (``finetunings.jsonl``); started again with the same
    arguments, or with more tasks, seeds or checkpoints, only what is missing is done. Scores of weights or data that
    have changed since do not count and are measured anew.

    Args:
        args: What is compared.

    Raises:
        ValueError: If a model or a task's data cannot be loaded, or the directory holds another evaluation.
        FileNotFoundError: If there are no data.
    """

    def __init__(self, args: EvaluationArguments) -> None:
        self.args = args
        self.folder = Path(args.output_dir)
        check_writable(self.folder)
        self.sources = {
            name: ModelSource(args.student, random_weights=True) if path == RANDOM else ModelSource(path)
            for name, path in args.models.items()
        }
        self.fingerprints = {name: source.fingerprint() for name, source in self.sources.items()}
        for source in self.sources.values():
            source.load_tokenizer()
        self.tasks = [
            load_task_data(
                Task.load(name), args.data_dir, args.languages, args.max_train_examples, args.max_test_examples
            )
            for name in args.tasks
        ]
        self.data_fingerprints = {data.task.name: data.fingerprint() for data in self.tasks}
        self.ledger = JsonLines(self.folder / LEDGER_FILE, FineTuningRecord.from_json)

    def run(self) -> EvaluationResults:
        """Measure what is not measured yet, and write the results."""
        configuration = {name: value for name, value in asdict(self.args).items() if name not in NEUTRAL}
        settle_configuration(self.folder, configuration)
        measurements = self._measure()
        known = self.ledger.read()
        self.ledger.set_to(known)  # without a torn last line
        records = [
            record
            for record in known
            if self.fingerprints.get(record.model) == record.fingerprint
            and self.data_fingerprints.get(record.task) == record.data
        ]
        runs = len(self.tasks) * len(self.sources) * (len(self.args.seeds) + len(self.args.learning_rates) - 1)
        with tqdm(total=runs, desc="Fine-tuning", unit="run") as progress:
            for data in self.tasks:
                for name in self.sources:
                    self._run_model(data, name, records, progress)
        shutil.rmtree(self.folder / TUNED_TEACHERS, ignore_errors=True)
        results = self._results(records, measurements)
        results.save(self.folder)
        write_report(results, self.folder)
        return results

    def _run_model(self, data: TaskData, name: str, records: list[FineTuningRecord], progress: tqdm) -> None:
        """Choose the learning rate with the first seed, then run the other seeds."""
        first, *others = self.args.seeds
        for rate in self.args.learning_rates:
            self._run_once(data, name, first, rate, records)
            progress.update()
        rate = best_learning_rate(_of(records, data.task.name, name, seed=first, rates=self.args.learning_rates))
        for seed in others:
            self._run_once(data, name, seed, rate, records)
            progress.update()

    def _run_once(
        self, data: TaskData, name: str, seed: int, learning_rate: float, records: list[FineTuningRecord]
    ) -> None:
        if _of(records, data.task.name, name, seed=seed, rates=[learning_rate]):
            return
        tuned = self._tune(data, name, seed, learning_rate, records)
        started = time.monotonic()
        scores, truncated = score_languages(tuned.trainer, tuned.tokenizer, data, self.args.max_length)
        record = FineTuningRecord(
            task=data.task.name,
            model=name,
            source=self.sources[name].path,
            fingerprint=self.fingerprints[name],
            data=self.data_fingerprints[data.task.name],
            seed=seed,
            learning_rate=learning_rate,
            validation_scores=tuned.validation_scores,
            scores=scores,
            truncated=truncated,
            train_seconds=tuned.seconds,
            test_seconds=time.monotonic() - started,
        )
        self.ledger.append(record)
        records.append(record)
        primary = METRICS[data.task.metric].primary
        average = sum(values[primary] for values in scores.values()) / len(scores)
        logger.info(
            f"{data.task.name}, {name}, seed {seed}, learning rate {learning_rate:g}: {primary} {100 * average:.1f} "
            f"over {len(scores)} languages, {100 * record.validation_score:.1f} on the validation set, "
            f"{tuned.seconds:.0f} s for {len(tuned.validation_scores)} epochs"
        )

    def _tune(
        self, data: TaskData, name: str, seed: int, learning_rate: float, records: list[FineTuningRecord]
    ) -> FineTuned:
        """Fine-tune a model, or distil the fine-tuned teacher of the same seed into it."""
        source = self.sources[name]
        if name != TASK_KD:
            tuned = fine_tune(source, data, self.args, seed, learning_rate)
            if name == TEACHER and self.args.task_distillation:
                save_tuned(tuned, self._tuned_teacher(data, seed, learning_rate))
            return tuned
        first = self.args.seeds[0]
        tried = _of(records, data.task.name, TEACHER, rates=self.args.learning_rates, seed=first)
        rate = best_learning_rate(tried)
        path = self._tuned_teacher(data, seed, rate)
        if not path.is_file():  # it was fine-tuned before a distillation was asked for
            save_tuned(fine_tune(self.sources[TEACHER], data, self.args, seed, rate), path)
        with tempfile.TemporaryDirectory() as folder:
            teacher = load_tuned(self.sources[TEACHER], data, self.args, path, folder)
            return distil_on_task(source, teacher, data, self.args, seed, learning_rate)

    def _tuned_teacher(self, data: TaskData, seed: int, learning_rate: float) -> Path:
        name = f"{data.task.name}-{self.fingerprints[TEACHER]}-{learning_rate:g}-{seed}.safetensors"
        return self.folder / TUNED_TEACHERS / name

    def _measure(self) -> dict[str, Any]:
        """Latency of the models whose weights it has not been measured of."""
        path = self.folder / MEASUREMENTS_FILE
        key = {"fingerprints": self.fingerprints}
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if before.get("key") == key:
                return before
        # one model of each shape: the baseline's is the student's
        shapes = {
            name: source for name, source in self.sources.items() if not source.random_weights and name != TASK_KD
        }
        logger.info(f"measuring the latency of {', '.join(shapes)}")
        benchmark = LatencyBenchmark(
            sequence_length=self.args.latency_sequence_length, threads=self.args.latency_threads
        )
        report = benchmark.measure({name: source.load_encoder() for name, source in shapes.items()})
        latency = {
            name: {**asdict(measured), "speedup": report.speedup(name)}
            for name, measured in report.measurements.items()
        }
        for name, source in self.sources.items():
            if source.random_weights or name == TASK_KD:
                latency[name] = latency[STUDENT]
        measured = {"key": key, "latency": latency, "latency_method": report.describe_method()}
        write_atomically(path, json.dumps(measured, indent=2) + "\n")
        return measured

    def _results(self, records: list[FineTuningRecord], measurements: Mapping[str, Any]) -> EvaluationResults:
        first = self.args.seeds[0]
        tasks = {}
        for data in self.tasks:
            name = data.task.name
            chosen = []
            for model in self.sources:
                rates = self.args.learning_rates
                rate = best_learning_rate(_of(records, name, model, seed=first, rates=rates))
                chosen += [r for r in _of(records, name, model, rates=[rate]) if r.seed in self.args.seeds]
            scores = TaskScores(
                task=name,
                metric=METRICS[data.task.metric].primary,
                train_language=data.task.train_language,
                data=data.describe(),
                majority=_majority(data),
            )
            tasks[name] = summarise_task(scores, chosen, sorted(data.test))
        return EvaluationResults(
            tasks=tasks,
            latency=measurements["latency"],
            latency_method=measurements["latency_method"],
            configuration=asdict(self.args),
            versions=package_versions("torch", "transformers", "datasets", "evaluate", "seqeval"),
            missing_languages=self._missing_languages(),
        )

    def _missing_languages(self) -> list[str] | None:
        """Languages that are tested and not among those that the student's card lists."""
        path = Path(self.args.student) / "README.md"
        listed = ModelCard.load(path).data.to_dict().get("language") if path.is_file() else None
        if not listed:
            return None
        known = {str(language).split("-")[0].lower() for language in listed}
        tested = {language for data in self.tasks for language in data.test}
        return sorted(language for language in tested if language.split("-")[0].lower() not in known)


def _of(
    records: list[FineTuningRecord], task: str, model: str, rates: list[float], seed: int | None = None
) -> list[FineTuningRecord]:
    return [
        record
        for record in records
        if record.task == task
        and record.model == model
        and record.learning_rate in rates
        and (seed is None or record.seed == seed)
    ]


def _majority(data: TaskData) -> dict[str, float]:
    """How often the most frequent label of the training data is right, by language."""
    if not METRICS[data.task.metric].share_of_right:
        return {}

    def labels(examples: list) -> list[int]:
        if data.task.kind == SEQUENCE_CLASSIFICATION:
            return [example.label for example in examples]
        return [label for example in examples for label in example.label]

    (most, _), *_ = Counter(labels(data.train.examples)).most_common(1)
    found = {language: labels(part.examples) for language, part in data.test.items()}
    return {language: numbers.count(most) / len(numbers) for language, numbers in found.items()}
