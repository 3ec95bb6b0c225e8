"""Metrics of downstream tasks, as `evaluate.Metric` classes of our own: nothing is downloaded."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from seqeval.metrics import f1_score, precision_score, recall_score

from ..students.task_heads import SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION


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

# what a word is predicted to be that the model did not read; no task has such a label
UNREAD = ""


class _Metric(Metric):
    """A metric that keeps what it is given in memory.

    Attributes:
        primary: The value by which models are compared.
        kind: The kind of task that it is for.
        share_of_right: Whether ``primary`` is the share of labels that are right.
    """

    primary: str
    kind: str
    share_of_right = False

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _info(self) -> Any:
        label: Any = datasets.Value("string")
        given = datasets.Sequence(label) if self.kind == TOKEN_CLASSIFICATION else label
        features = datasets.Features({"predictions": given, "references": given})
        return evaluate.MetricInfo(description=str(self.__doc__), citation="", inputs_description="", features=features)


class Accuracy(_Metric):
    """The share of texts whose label is right."""

    primary = "accuracy"
    kind = SEQUENCE_CLASSIFICATION
    share_of_right = True

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return {"accuracy": _share_of_equals(predictions, references)}


class TokenAccuracy(Accuracy):
    """The share of words whose label is right."""

    kind = TOKEN_CLASSIFICATION

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return super()._compute([*itertools.chain(*predictions)], [*itertools.chain(*references)])


class MacroF1(_Metric):
    """F1 of each class that occurs in the references or predictions, averaged."""

    primary = "macro_f1"
    kind = SEQUENCE_CLASSIFICATION

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
    kind = TOKEN_CLASSIFICATION

    def _compute(self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
        read = [[label or "O" for label in labels] for labels in predictions]
        arguments: dict[str, Any] = {"zero_division": 0}  # of precision, where no entity was predicted
        return {
            "f1": float(f1_score(references, read, **arguments)),
            "precision": float(precision_score(references, read, **arguments)),
            "recall": float(recall_score(references, read, **arguments)),
        }


METRICS: dict[str, type[_Metric]] = {
    "accuracy": Accuracy,
    "macro_f1": MacroF1,
    "seqeval_f1": SeqevalF1,
    "token_accuracy": TokenAccuracy,
}


def _share_of_equals(predictions: Sequence[str], references: Sequence[str]) -> float:
    return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)
