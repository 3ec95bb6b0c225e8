"""The scores of an evaluation, added up: per language over seeds, retention of the teacher, and speed-up."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..utils.atomic_files import write_atomically
from ..utils.json_lines import JsonRecord

RESULTS_FILE = "results.json"
CSV_FILE = "scores.csv"
TEACHER = "teacher"
STUDENT = "student"
BASELINE = "no-KD"
TASK_KD = "student+task-KD"


@dataclass(frozen=True)
class FineTuningRecord(JsonRecord):
    """One fine-tuning of one model on one task, and its scores.

    Attributes:
        task: Name of the task.
        model: What the model is called in this evaluation.
        source: Hub id or path that it started from.
        fingerprint: Of its weights: scores of other weights are not those of this model.
        data: Fingerprint of the task's data.
        seed: Of the head, of dropout and of the order of the data.
        learning_rate: The learning rate.
        validation_scores: Primary metric on the validation set after each pass over the training data.
        scores: The metric's values by language.
        truncated: By language, how many texts were cut and how many words could not be read, where there were any.
        train_seconds: Wall-clock time of the training.
        test_seconds: Wall-clock time of the scoring.
    """

    task: str
    model: str
    source: str
    fingerprint: str
    data: str
    seed: int
    learning_rate: float
    validation_scores: list[float]
    scores: dict[str, dict[str, float]]
    truncated: dict[str, dict[str, int]]
    train_seconds: float
    test_seconds: float

    @property
    def validation_score(self) -> float:
        """Of the weights that were scored."""
        return max(self.validation_scores)


@dataclass(frozen=True)
class Spread:
    """Mean over seeds.

    Attributes:
        mean: The mean.
        std: Sample standard deviation; None of a single seed.
        seeds: The value of each seed.
        retention: The mean in percent of the teacher's; None where the teacher's is zero or unknown.
    """

    mean: float
    std: float | None
    seeds: dict[int, float]
    retention: float | None = None

    @classmethod
    def of(cls, values: Mapping[int, float], reference: Spread | None = None) -> Spread:
        """Summarise the values of seeds."""
        mean = statistics.fmean(values.values())
        std = statistics.stdev(values.values()) if len(values) > 1 else None
        retention = 100 * mean / reference.mean if reference is not None and reference.mean else None
        return cls(mean, std, dict(values), retention)


@dataclass(frozen=True)
class ModelScores:
    """What one model reached on one task.

    Attributes:
        source: Hub id or path that it started from.
        learning_rate: The learning rate.
        languages: Its scores.
        average: Mean over the languages.
        zero_shot: Mean over the languages that are not trained in; None if there is no other.
    """

    source: str
    learning_rate: float
    languages: dict[str, Spread]
    average: Spread
    zero_shot: Spread | None


@dataclass
class TaskScores:
    """What every model reached on one task.

    Attributes:
        task: Name of the task.
        metric: Name of the value that is compared.
        train_language: The language of the training data.
        data: Where the data came from and what was left out, see `TaskData.describe`.
        majority: The score of always answering with the most frequent label of the training data, by language; empty
            where the metric is not a share of right answers.
        models: By name.
    """

    task: str
    metric: str
    train_language: str
    data: dict[str, Any]
    majority: dict[str, float]
    models: dict[str, ModelScores] = field(default_factory=dict)


@dataclass
class EvaluationResults:
    """All that an evaluation found.

    Attributes:
        tasks: By name.
        latency: ``median_ms``, ``iqr_ms`` and ``speedup`` of each model that was measured, by name.
        latency_method: How latency was measured.
        configuration: What was asked.
        versions: Of the libraries.
        missing_languages: Languages that are tested and not in the text that the student was distilled on, where its
            card says which are; None where that is not known.
    """

    tasks: dict[str, TaskScores]
    latency: dict[str, dict[str, float]]
    latency_method: str
    configuration: dict[str, Any]
    versions: dict[str, str]
    missing_languages: list[str] | None = None

    @property
    def retention(self) -> dict[str, float]:
        """Percent of the teacher's average score that each other model keeps, averaged over tasks."""
        found: dict[str, list[float]] = {}
        for task in self.tasks.values():
            for name, model in task.models.items():
                if name != TEACHER and model.average.retention is not None:
                    found.setdefault(name, []).append(model.average.retention)
        return {name: statistics.fmean(values) for name, values in found.items()}

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {"retention": self.retention, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvaluationResults:
        """Read what `as_dict` gave, also after a way through JSON.

        Raises:
            KeyError, TypeError: If it is something else.
        """

        def spread(given: Mapping[str, Any] | None) -> Spread | None:
            # JSON knows no numbers as keys
            return (
                None if given is None else Spread(**{**given, "seeds": {int(k): v for k, v in given["seeds"].items()}})
            )

        def model(given: Mapping[str, Any]) -> ModelScores:
            languages = {language: spread(one) for language, one in given["languages"].items()}
            averages = {name: spread(given[name]) for name in ("average", "zero_shot")}
            return ModelScores(**{**given, "languages": languages, **averages})

        def task(given: Mapping[str, Any]) -> TaskScores:
            return TaskScores(**{**given, "models": {name: model(one) for name, one in given["models"].items()}})

        known = {name: value for name, value in values.items() if name != "retention"}  # follows from the others
        return cls(**{**known, "tasks": {name: task(one) for name, one in values["tasks"].items()}})

    def save(self, folder: Path) -> None:
        """Write ``results.json`` and ``scores.csv``."""
        text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(folder / RESULTS_FILE, text + "\n")
        with (folder / CSV_FILE).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["task", "model", "learning_rate", "seed", "language", "metric", "score"])
            for task in self.tasks.values():
                for name, model in task.models.items():
                    for language, spread in model.languages.items():
                        for seed, score in spread.seeds.items():
                            writer.writerow([task.task, name, model.learning_rate, seed, language, task.metric, score])


def summarise_task(scores: TaskScores, records: Iterable[FineTuningRecord], languages: Sequence[str]) -> TaskScores:
    """Add up the records of a task, those of each model being of one learning rate.

    Args:
        scores: The task, without models.
        records: Fine-tunings of this task.
        languages: The languages, in order.
    """
    by_model: dict[str, list[FineTuningRecord]] = {}
    for record in records:
        by_model.setdefault(record.model, []).append(record)
    zero_shot = [language for language in languages if language != scores.train_language]
    # the teacher first: the others are compared with it
    for name in sorted(by_model, key=lambda name: name != TEACHER):
        runs = by_model[name]
        teacher = scores.models.get(TEACHER) if name != TEACHER else None
        values = {run.seed: {lang: run.scores[lang][scores.metric] for lang in languages} for run in runs}

        def over(chosen: Sequence[str], reference: Spread | None, values: Any = values) -> Spread:
            return Spread.of(
                {seed: statistics.fmean(found[lang] for lang in chosen) for seed, found in values.items()}, reference
            )

        scores.models[name] = ModelScores(
            source=runs[0].source,
            learning_rate=runs[0].learning_rate,
            languages={lang: over([lang], teacher.languages[lang] if teacher else None) for lang in languages},
            average=over(languages, teacher.average if teacher else None),
            zero_shot=over(zero_shot, teacher.zero_shot if teacher else None) if zero_shot else None,
        )
    return scores


def best_learning_rate(records: Iterable[FineTuningRecord]) -> float:
    """The learning rate with the best validation score; of equals the lower one."""
    return min(records, key=lambda record: (-record.validation_score, record.learning_rate)).learning_rate
