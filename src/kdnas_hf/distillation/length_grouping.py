"""The order of the training texts: random, but with texts of similar length side by side, so that little is padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import torch
from torch.utils.data import Sampler


def text_lengths(dataset: Any) -> Sequence[int]:
    """Tokens of each text of a data set: its column ``length`` if it has one, else counted."""
    if isinstance(dataset, datasets.Dataset) and "length" in dataset.column_names:
        return dataset["length"][:]
    return [len(row["input_ids"]) for row in dataset]


class LengthGroupedSampler(Sampler[int]):
    """Texts of similar length in the same batch; the batches in random order.

    Unlike the sampler of transformers it depends on nothing but its arguments and the epoch: a resumed run sees the
    order of an undisturbed one, and any number of processes sees the same batches. For the same reason the few texts
    that would not fill a step are left out, others in each epoch (a data set smaller than one step is used whole).

    Args:
        lengths: Tokens of each text.
        batch_size: Texts in one step of all processes and accumulated micro-batches together.
        seed: Together with the epoch, what the order is drawn from.
        batches_per_pool: Texts are sorted by length among this many batches at a time.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, batches_per_pool: int = 200) -> None:
        self.lengths = torch.as_tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_pool = batches_per_pool
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) // self.batch_size * self.batch_size or len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)[: len(self)]
        batches: list[torch.Tensor] = []
        for pool in order.split(self.batch_size * self.batches_per_pool):
            by_length = pool[self.lengths[pool].argsort(descending=True, stable=True)]
            batches.extend(by_length.split(self.batch_size))
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[index].tolist()
