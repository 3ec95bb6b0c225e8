"""Tokenized texts: how long they are, which tokens they hold, and the order in which they become batches."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback


def text_lengths(dataset: Any) -> Sequence[int]:
    """Tokens of each text of a data set: its ``lengths``, or its column ``length`` if it has one, else counted."""
    if hasattr(dataset, "lengths"):
        return dataset.lengths
    if isinstance(dataset, datasets.Dataset) and "length" in dataset.column_names:
        return dataset["length"][:]
    if isinstance(dataset, datasets.Dataset):
        return [length for _, lengths in token_chunks(dataset) for length in lengths.tolist()]
    return [len(row["input_ids"]) for row in dataset]


def token_chunks(dataset: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token ids of many texts at a time.

    Yields:
        Ids one after the other ``(tokens,)`` int32, and the texts' lengths ``(texts,)`` int64.
    """
    texts_at_a_time = 8192
    # a transform is applied on the way to Python: the table behind it is not what the data set shows
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
        for table in dataset.select_columns("input_ids").with_format("arrow").iter(batch_size=texts_at_a_time):
            column = table["input_ids"].combine_chunks()
            ids = pc.list_flatten(column).to_numpy(zero_copy_only=False)
            lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
            yield ids.astype(np.int32, copy=False), lengths.astype(np.int64)
        return
    for start in range(0, len(dataset), texts_at_a_time):
        indices = range(start, min(start + texts_at_a_time, len(dataset)))
        rows = [np.asarray(dataset[index]["input_ids"], dtype=np.int32) for index in indices]
        yield np.concatenate(rows), np.array([len(row) for row in rows], dtype=np.int64)


def occurring_tokens(dataset: Any) -> torch.Tensor:
    """Every token of a data set once, ``(tokens,)`` int64 in ascending order."""
    found = [np.unique(ids) for ids, _ in token_chunks(dataset)]
    return torch.from_numpy(np.unique(np.concatenate([np.zeros(0, dtype=np.int32), *found])).astype(np.int64))


def digest_of_texts(dataset: Any) -> str:
    """A digest of all token ids of a data set, whatever holds them."""
    digest = hashlib.blake2b(digest_size=16)
    for ids, lengths in token_chunks(dataset):
        digest.update(np.ascontiguousarray(lengths).tobytes())
        digest.update(np.ascontiguousarray(ids).tobytes())
    return digest.hexdigest()


def sample_of_texts(dataset: Any, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """A random sample of ``count`` rows in order of length; of a stream its first ones.

    A corpus is often ordered by language: its beginning would speak for all languages by the first few.
    """
    if isinstance(dataset, Sized) and hasattr(dataset, "__getitem__"):
        chosen = sorted(random.Random(seed).sample(range(len(dataset)), min(count, len(dataset))))
        sample: Iterable[Mapping[str, Any]] = (dataset[index] for index in chosen)
    else:
        sample = itertools.islice(dataset, count)
    return sorted((dict(row) for row in sample), key=lambda row: len(row["input_ids"]))


class LengthGroupedSampler(Sampler[int]):
    """Texts of similar length in the same batch; the batches in random order, but for the longest, which comes first.

    What does not fit into memory is found at the first step and not in the middle of an epoch.

    Unlike the sampler of transformers it depends on nothing but its arguments and the epoch: a resumed run sees the
    order of an undisturbed one, and any number of processes sees the same batches. For the same reason the few texts
    that would not fill a step are left out, others in each epoch (a data set smaller than one step is used whole).

    Args:
        lengths: Tokens of each text.
        batch_size: Texts in one step of all processes and accumulated micro-batches together.
        seed: Together with the epoch, what the order is drawn from.
        batches_per_megabatch: Texts are sorted by length among this many batches at a time.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, batches_per_megabatch: int = 200) -> None:
        self.lengths = torch.as_tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_megabatch = batches_per_megabatch
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
        for megabatch in order.split(self.batch_size * self.batches_per_megabatch):
            by_length = megabatch[self.lengths[megabatch].argsort(descending=True, stable=True)]
            batches.extend(by_length.split(self.batch_size))
        numbers = torch.randperm(len(batches), generator=generator).tolist()
        # by its tokens once padded
        longest = max(numbers, key=lambda n: int(self.lengths[batches[n]].max()) * len(batches[n]), default=None)
        for number in sorted(numbers, key=lambda n: n != longest):
            yield from batches[number].tolist()


class SamplerEpochCallback(TrainerCallback):
    """Tells the sampler which epoch begins.

    Accelerate does so as well, but does not reach it in an epoch that is resumed with several processes.
    """

    sampler: LengthGroupedSampler | None = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch of the sampler."""
        if self.sampler is not None:
            self.sampler.set_epoch(int(state.epoch or 0))
