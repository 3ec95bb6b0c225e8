"""Writes the scores of an evaluation into the card of the student."""

from __future__ import annotations

import re
from pathlib import Path

from transformers.utils import logging

from ..evaluation import EvaluationResults
from ..evaluation.report import language_table, method, summary

logger = logging.get_logger(__name__)

# the card's template has these, and between them that nothing was measured
BEGIN, END = "<!-- scores -->", "<!-- end of scores -->"
MANY_LANGUAGES = 12


def write_scores_into_card(results: EvaluationResults, student: str | Path) -> Path | None:
    """Put the scores into the place that the card of a local student has for them; again, if there were others.

    Args:
        results: What was measured.
        student: The student's directory.

    Returns:
        The card; None if the student has none with such a place, which is logged.
    """
    path = Path(student) / "README.md"
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    place = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not place.search(card):
        logger.warning(f"{path} has no place for scores ({BEGIN} … {END}); it stays as it is.")
        return None
    section = f"{BEGIN}\n{scores_section(results)}\n{END}"
    path.write_text(place.sub(lambda _: section, card, count=1), encoding="utf-8")
    return path


def scores_section(results: EvaluationResults) -> str:
    """The scores as Markdown; tables of many languages are folded."""
    parts = [
        "Scores on downstream tasks, fine-tuned in one language and tested in others, in percent:",
        summary(results),
    ]
    for task in results.tasks.values():
        shown = language_table(task, results.missing_languages)
        if len(next(iter(task.models.values())).languages) > MANY_LANGUAGES:
            shown = f"<details><summary>{task.task} by language</summary>\n\n{shown}\n\n</details>"
        parts.append(shown)
    return "\n\n".join([*parts, method(results)])
