"""Metrics of downstream tasks, as `evaluate.Metric` classes of our own: nothing is downloaded."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from seqeval.metrics import f1_score, precision_score, recall_score


def _import_evaluate() -> Any:
    """The library `evaluate`: where a script of that name is run, as in recipes/, the script's folder comes first."""
    path = sys.path[:]
    sys.path[:] = [folder for folder in path if not Path(folder, "evaluate.py").is_file()]
    try:
        return importlib.import_module("evaluate")
    finally:
        sys.path[:] = path


evaluate: Any = _import_evaluate()
Metric: Any = evaluate.Metric

TEXT_LABELS = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
WORD_LABELS = datasets.Features(
    {
        "predictions": datasets.Sequence(datasets.Value("string")),
        "references": datasets.Sequence(datasets.Value("string")),
    }
)
# what a word is predicted to be that the model did not read; no task has such a label
UNREAD = ""


class _Metric(Metric):
    """A metric that keeps what it is given in memory.

    Attributes:
        primary: The value by which models are compared.
        kind: The kind of task that it is for.
    """

    primary: str
    kind: str
    features: datasets.Features
    description: str

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=self.description, citation="", inputs_description="", features=self.features
        )


class Accuracy(_Metric):
    """The share of texts whose label is right."""

    primary = "accuracy"
    kind = "sequence_classification"
    features = TEXT_LABELS
    description = "Share of texts whose label is right."

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        return {"accuracy": _share_of_equals(predictions, references)}


class MacroF1(_Metric):
    """F1 of each class that occurs in the references or predictions, averaged."""

    primary = "macro_f1"
    kind = "sequence_classification"
    features = TEXT_LABELS
    description = "F1 of each class that occurs, averaged over classes."

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        classes = sorted({*predictions, *references})
        pairs = list(zip(predictions, references, strict=True))
        scores = []
        for label in classes:
            right = sum(p == r == label for p, r in pairs)
            scores.append(2 * right / (sum(p == label for p, _ in pairs) + sum(r == label for _, r in pairs)))
        return {"macro_f1": sum(scores) / len(scores), "accuracy": _share_of_equals(predictions, references)}


class SeqevalF1(_Metric):
    """F1 of whole entities, type and both borders right, as conlleval and XTREME count: seqeval's default reading."""

    primary = "f1"
    kind = "token_classification"
    features = WORD_LABELS
    description = "F1 of whole entities (seqeval, default mode)."

    def _compute(self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
        read = [[label or "O" for label in labels] for labels in predictions]
        arguments: dict[str, Any] = {"zero_division": 0}  # of precision, where no entity was predicted
        return {
            "f1": float(f1_score(references, read, **arguments)),
            "precision": float(precision_score(references, read, **arguments)),
            "recall": float(recall_score(references, read, **arguments)),
        }


class TokenAccuracy(_Metric):
    """The share of words whose label is right."""

    primary = "accuracy"
    kind = "token_classification"
    features = WORD_LABELS
    description = "Share of words whose label is right."

    def _compute(self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
        return {
            "accuracy": _share_of_equals(
                [label for labels in predictions for label in labels],
                [label for labels in references for label in labels],
            )
        }


METRICS: dict[str, type[_Metric]] = {
    "accuracy": Accuracy,
    "macro_f1": MacroF1,
    "seqeval_f1": SeqevalF1,
    "token_accuracy": TokenAccuracy,
}


def _share_of_equals(predictions: Sequence[str], references: Sequence[str]) -> float:
    return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)
