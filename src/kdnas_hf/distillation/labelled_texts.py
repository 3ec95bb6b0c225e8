"""Texts with a task's labels: what students ask of them, and how they become batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding, PreTrainedTokenizerBase
from transformers.trainer_utils import has_length

from ..students import KDNASForTokenClassification
from .batch import IGNORED_LABEL
from .pool import StudentPool

LABELS = "labels"
_TEXTS_AT_A_TIME = 8192


def text_columns(pool: StudentPool) -> list[str]:
    """The columns of a data set that a pool reads: labels, which may be there anyway, only where it learns a task."""
    return ["input_ids", LABELS] if pool.classifies else ["input_ids"]


def padding_collator(tokenizer: PreTrainedTokenizerBase, tags: bool) -> Any:
    """What pads texts to a batch, and with them the labels of tokens, if these have any (``tags``), by -100."""
    return (DataCollatorForTokenClassification if tags else DataCollatorWithPadding)(tokenizer)


def classifies_tokens(pool: StudentPool) -> bool:
    """Whether students learn a class for each token."""
    return any(isinstance(model, KDNASForTokenClassification) for model in pool.models.values())


def check_labelled_texts(name: str, texts: Any, pool: StudentPool) -> None:
    """Refuse texts whose labels are not those that a pool's students learn. Of a stream only the columns are known.

    Args:
        name: The argument that the texts were given as.
        texts: A data set, several by name, or None.
        pool: The students.

    Raises:
        ValueError: If there are no labels, or they are not of one class for each text (or for each token).
    """
    if not pool.classifies or texts is None:
        return
    if isinstance(texts, Mapping):
        for part, dataset in texts.items():
            check_labelled_texts(f"{name}[{part!r}]", dataset, pool)
        return
    known = has_length(texts) and len(texts) > 0
    columns = list(texts[0]) if known else getattr(texts, "column_names", None)
    if isinstance(columns, list) and LABELS not in columns:
        needing = ", ".join(pool.labeled_losses)
        raise ValueError(f"{name} has no column 'labels', which losses={needing} need; it has {columns}.")
    if known:
        labels, tokens, tags = np.asarray(texts[0][LABELS]), len(texts[0]["input_ids"]), classifies_tokens(pool)
        if labels.shape != ((tokens,) if tags else ()) or labels.dtype.kind not in "iu":
            wanted = f"one whole number for each of its {tokens} tokens" if tags else "one whole number"
            raise ValueError(f"{name}: the labels of the first text are {texts[0][LABELS]!r}; give it {wanted}.")
        classes = min(int(model.config.num_labels or 0) for model in pool.models.values())
        for values in _label_chunks(texts):
            wrong = values[(values != IGNORED_LABEL) & ((values < 0) | (values >= classes))]
            if len(wrong):
                raise ValueError(f"{name} has the label {wrong[0]}; choose from 0 to {classes - 1}, or -100 for none.")


def _label_chunks(texts: Any) -> Iterator[np.ndarray]:
    """Labels ``(labels,)`` of many texts at a time."""
    # a transform is applied on the way to Python: the table behind it is not what the data set shows
    if isinstance(texts, datasets.Dataset) and texts.format["type"] != "custom":
        for table in texts.select_columns(LABELS).with_format("arrow").iter(batch_size=_TEXTS_AT_A_TIME):
            column = table[LABELS].combine_chunks()
            values = column if pa.types.is_integer(column.type) else pc.list_flatten(column)
            yield values.to_numpy(zero_copy_only=False)
        return
    for start in range(0, len(texts), _TEXTS_AT_A_TIME):
        rows = range(start, min(start + _TEXTS_AT_A_TIME, len(texts)))
        yield np.concatenate([np.atleast_1d(np.asarray(texts[row][LABELS])) for row in rows])
