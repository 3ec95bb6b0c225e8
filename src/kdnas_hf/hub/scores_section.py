"""The scores of an evaluation as a section of the student's card."""

from __future__ import annotations

import re
from pathlib import Path

from ..evaluation import EvaluationResults
from ..evaluation.embeddings import EmbeddingResults
from ..evaluation.report import language_table, method, summary
from ..evaluation.results import TaskScores

# the card's template has these, and between them that nothing was measured
BEGIN, END = "<!-- scores -->", "<!-- end of scores -->"
MANY_LANGUAGES = 12


def put_scores(card: str | Path, section: str) -> bool:
    """Put a section of scores into the place that a card has for it; again, if there was another.

    Args:
        card: The card.
        section: Markdown.

    Returns:
        Whether it has such a place; one that has none stays as it is.
    """
    path = Path(card)
    text = path.read_text(encoding="utf-8")
    place = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not place.search(text):
        return False
    path.write_text(place.sub(lambda _: f"{BEGIN}\n{section}\n{END}", text, count=1), encoding="utf-8")
    return True


def scores_section(results: EvaluationResults) -> str:
    """The scores as Markdown; tables of many languages are folded."""
    parts = [
        "Scores on downstream tasks, fine-tuned in one language and tested in others, in percent:",
        summary(results),
    ]
    for task in results.tasks.values():
        shown = language_table(task, results.missing_languages)
        parts += [_sources(task), _folded(task.task, shown, len(next(iter(task.models.values())).languages))]
    return "\n\n".join([*parts, method(results)])


def vectors_section(results: EmbeddingResults) -> str:
    """Scores of sentence vectors as Markdown; tables of many languages are folded."""
    parts = [
        "Sentence vectors as they are, without any training, in percent; brackets hold 95 % intervals over rows:",
        results.summary(),
    ]
    parts += [_folded(name, results.language_table(task), len(task.data)) for name, task in results.tasks.items()]
    return "\n\n".join(parts)


def _folded(task: str, table: str, languages: int) -> str:
    if languages <= MANY_LANGUAGES:
        return table
    return f"<details><summary>{task} by language</summary>\n\n{table}\n\n</details>"


def _sources(task: TaskScores) -> str:
    """On what a task's models were trained and tested."""
    train, counts = task.data["train"], [part["examples"] for part in task.data["test"].values()]
    tested = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return (
        f"**{task.task}**: {train['examples']:,} examples in {task.train_language} ({train['source']}) to train on, "
        f"{tested} of each language to test on."
    )
