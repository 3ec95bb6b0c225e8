"""Checks of a tokenized data set's labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers.trainer_utils import has_length

LABELS = "labels"
IGNORED_LABEL = -100  # what losses of transformers ignore
_TEXTS_AT_A_TIME = 8192


def check_labels(name: str, texts: Any, classes: int, tags: bool, needing: str) -> None:
    """Refuse texts whose labels are not classes. Of a stream only the columns are known.

    Args:
        name: The argument that the texts were given as.
        texts: A data set.
        classes: Number of classes.
        tags: Whether each token has a label, and not each text.
        needing: The losses that need labels.

    Raises:
        ValueError: If there are no labels, or they are not of one class for each text (or for each token).
    """
    known = has_length(texts) and len(texts) > 0
    columns = list(texts[0]) if known else getattr(texts, "column_names", None)
    if isinstance(columns, list) and LABELS not in columns:
        raise ValueError(f"{name} has no column 'labels', which losses={needing} need; it has {columns}.")
    if known:
        labels, tokens = np.asarray(texts[0][LABELS]), len(texts[0]["input_ids"])
        if labels.shape != ((tokens,) if tags else ()) or labels.dtype.kind not in "iu":
            wanted = f"one whole number for each of its {tokens} tokens" if tags else "one whole number"
            raise ValueError(f"{name}: the labels of the first text are {texts[0][LABELS]!r}; give it {wanted}.")
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
