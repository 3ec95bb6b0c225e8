"""Scores in the two forms that the Hub reads: ``model-index`` in a card, and ``.eval_results/*.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult

from ..evaluation import EvaluationResults
from ..evaluation.results import STUDENT, ModelScores, Spread, TaskScores

EVAL_RESULTS_FOLDER = ".eval_results"
# a card's metadata would be longer than the card: of more languages it holds the averages alone
MAX_LANGUAGES = 20
TASK_TYPES = {"sequence_classification": "text-classification", "token_classification": "token-classification"}


def model_index(results: EvaluationResults) -> list[EvalResult]:
    """The student's scores as entries of a ``model-index``, in percent.

    For each task the average over all languages and that over those that were not trained on; the languages one by one
    where there are few.
    """
    found = []
    for task in results.tasks.values():
        model = task.models.get(STUDENT)
        if model is None:
            continue
        found.append(_entry(task, f"{len(model.languages)} languages", model.average))
        if model.zero_shot is not None:
            found.append(_entry(task, f"all languages but {task.train_language}", model.zero_shot))
        if len(model.languages) <= MAX_LANGUAGES:
            found += [_entry(task, language, spread) for language, spread in model.languages.items()]
    return found


def write_eval_results(results: EvaluationResults, student: str | Path) -> list[Path]:
    """Write ``.eval_results/<task>.yaml`` for every task whose data are a dataset of the Hub.

    An entry must name a dataset of the Hub; scores on other data have no place there and are on the card alone.

    Args:
        results: What was measured.
        student: The student's directory; what an earlier evaluation left there of the same tasks is replaced.

    Returns:
        The files.
    """
    folder = Path(student) / EVAL_RESULTS_FOLDER
    written = []
    for task in results.tasks.values():
        model = task.models.get(STUDENT)
        path = folder / f"{task.task}.yaml"
        if model is None or not task.data.get("hub"):
            path.unlink(missing_ok=True)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(eval_result_entries(task, model), sort_keys=False, allow_unicode=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def eval_result_entries(task: TaskScores, model: ModelScores) -> list[dict[str, Any]]:
    """A task's scores by language, in percent, as the Hub's ``.eval_results`` has them.

    Args:
        task: A task whose data are a dataset of the Hub.
        model: The student's scores.
    """
    hub = task.data["hub"]
    entries = []
    for language, spread in model.languages.items():
        notes = [
            f"{task.metric} in percent",
            f"fine-tuned on {task.train_language}",
            f"mean of {len(spread.seeds)} seed(s)",
            f"{task.data['test'][language]['examples']} examples of {task.data['test'][language]['source']}",
        ]
        entries.append(
            {
                "dataset": {"id": hub["dataset"], "task_id": hub["configs"].get(language) or "default"},
                "value": round(100 * spread.mean, 2),
                "notes": "; ".join(notes),
            }
        )
    return entries


def _entry(task: TaskScores, part: str, spread: Spread) -> EvalResult:
    hub = task.data.get("hub") or {}
    seeds = f"mean of {len(spread.seeds)} seed(s)"
    return EvalResult(
        task_type=TASK_TYPES[task.data["kind"]],
        dataset_type=hub.get("dataset", task.task),
        dataset_name=f"{task.task}, {part}",
        dataset_config=hub.get("configs", {}).get(part) or part,  # entries are told apart by it
        dataset_split=hub.get("split", "test"),
        metric_type=task.metric,
        metric_name=f"{task.metric} (%), fine-tuned on {task.train_language}, {seeds}",
        metric_value=round(100 * spread.mean, 2),
    )
