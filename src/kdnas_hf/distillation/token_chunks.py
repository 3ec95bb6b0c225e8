"""The token ids of a data set, many texts at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch


def token_chunks(dataset: Any, first: int, last: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token ids of the texts from ``first`` to before ``last``.

    Yields:
        For some texts at a time their ids one after the other ``(tokens,)`` int32, and their lengths ``(texts,)``
        int64.
    """
    texts_at_a_time = 8192
    # a transform is applied on the way to Python: the table behind it is not what the data set shows
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
        shown = dataset.select_columns("input_ids").with_format("arrow").select(range(first, last))
        for table in shown.iter(batch_size=texts_at_a_time):
            column = table["input_ids"].combine_chunks()
            ids = pc.list_flatten(column).to_numpy(zero_copy_only=False)
            lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
            yield ids.astype(np.int32, copy=False), lengths.astype(np.int64)
        return
    for start in range(first, last, texts_at_a_time):
        indices = range(start, min(start + texts_at_a_time, last))
        rows = [np.asarray(dataset[index]["input_ids"], dtype=np.int32) for index in indices]
        yield np.concatenate(rows), np.array([len(row) for row in rows], dtype=np.int64)


def occurring_tokens(dataset: Any) -> torch.Tensor:
    """Every token of a data set once, ``(tokens,)`` int64 in ascending order."""
    found = [np.unique(ids) for ids, _ in token_chunks(dataset, 0, len(dataset))]
    return torch.from_numpy(np.unique(np.concatenate([np.zeros(0, dtype=np.int32), *found])).astype(np.int64))
