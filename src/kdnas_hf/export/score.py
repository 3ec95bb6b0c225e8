"""Scores of a model with a head on its task, in PyTorch and exported alike."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import PredictionOutput

from ..evaluation import METRICS, TaskData, score_languages, task_collator
from .exported_model import ExportedModel

BATCH_SIZE = 32


class _Predictor:
    """What `score_languages` asks of a Trainer: predictions in the order of a dataset."""

    compute_metrics: Any = None

    def __init__(self, model: ExportedModel | PreTrainedModel, collator: Any) -> None:
        self.model = model
        self.collator = collator

    @torch.inference_mode()
    def predict(self, dataset: Any) -> PredictionOutput:
        columns = [name for name in dataset.column_names if name in ("input_ids", "attention_mask", "label", "labels")]
        predicted, marked = [], []
        for batch in DataLoader(dataset.select_columns(columns), batch_size=BATCH_SIZE, collate_fn=self.collator):
            outputs: Any = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            predicted += list(outputs.logits.argmax(-1).numpy())
            marked += list(batch["labels"].numpy())
        longest = max((len(row) for row in predicted if row.ndim), default=0)
        return PredictionOutput(_stack(predicted, longest, 0), _stack(marked, longest, -100), {})


def mean_score(
    model: ExportedModel | PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: TaskData, max_length: int = 128
) -> float:
    """The task's primary metric in percent, averaged over the languages of its test set.

    Args:
        model: With a head that was trained on the task's labels.
        tokenizer: Its tokenizer.
        data: The task's data.
        max_length: Longest example in tokens.

    Raises:
        ValueError: If the head has other labels.
    """
    labels = [str(label) for _, label in sorted((model.config.id2label or {}).items(), key=lambda item: int(item[0]))]
    if labels != [str(label) for label in data.labels]:
        raise ValueError(
            f"task={data.task.name!r} has the labels {list(data.labels)[:5]}…, the model's head {labels[:5]}…; give "
            "the task that it was trained on."
        )
    if isinstance(model, PreTrainedModel):
        model.eval()
    predictor = _Predictor(model, task_collator(data.task, tokenizer))
    scores, _ = score_languages(cast(Any, predictor), tokenizer, data, max_length)
    primary = METRICS[data.task.metric].primary
    return 100 * float(np.mean([values[primary] for values in scores.values()]))


def _stack(rows: list[np.ndarray], longest: int, filling: int) -> np.ndarray:
    if not longest:
        return np.array(rows)
    stacked = np.full((len(rows), longest), filling, dtype=np.int64)
    for place, row in enumerate(rows):
        stacked[place, : len(row)] = row
    return stacked
