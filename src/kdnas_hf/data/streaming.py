"""Texts that come as a stream: each process reads a share of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import datasets
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset


def is_stream(dataset: Any) -> bool:
    """Whether texts can only be read one after the other."""
    return isinstance(dataset, (IterableDataset, datasets.IterableDataset))


class StreamShare(IterableDataset):
    """The share of one process of a stream of texts; the shares of all processes are disjoint.

    Accelerate would read the whole stream in the main process and send batches to the others, which needs batches that
    are padded to one length. A `datasets.IterableDataset` is split by node instead: by its shards (files, mostly) if
    they can be dealt out evenly, and else by texts, of which each process then skips those of the others.

    For training it never ends: after its last text it begins again, as the next epoch of a shuffled stream. No process
    runs out of texts before the others, and a resumed run finds its place by the number of batches alone.

    Args:
        stream: Rows with ``input_ids``.
        process: Index of the process.
        processes: Number of processes.
        endless: Whether to begin again at the end.
        columns: What is kept of a row.
    """

    def __init__(
        self,
        stream: Iterable[Mapping[str, Any]],
        process: int,
        processes: int,
        endless: bool,
        columns: Sequence[str] = ("input_ids",),
    ) -> None:
        super().__init__()
        self.process = process
        self.processes = processes
        self.endless = endless
        self.columns = tuple(columns)
        self.share: Any = stream
        self.every_nth = False
        if isinstance(stream, datasets.IterableDataset):
            self.share = split_dataset_by_node(stream, process, processes)
        else:
            self.every_nth = True

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for epoch in itertools.count():
            if hasattr(self.share, "set_epoch"):
                self.share.set_epoch(epoch)
            rows = itertools.islice(self.share, self.process, None, self.processes) if self.every_nth else self.share
            empty = True
            for row in rows:
                empty = False
                yield {name: row[name] for name in self.columns}
            if empty or not self.endless:
                return


__all__ = ["StreamShare", "is_stream"]
