"""Tokenized texts: their lengths, their digest, samples of them, and the order in which they become batches."""

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdnas_hf.data.batching import (
    LengthGroupedSampler,
    digest_of_texts,
    occurring_tokens,
    sample_of_texts,
    text_lengths,
)

lengths_of_texts = st.lists(st.integers(1, 50), min_size=1, max_size=200)


@given(lengths_of_texts, st.integers(1, 16), st.integers(0, 3))
def test_no_text_twice_and_full_steps_only(lengths, batch_size, epoch):
    sampler = LengthGroupedSampler(lengths, batch_size, seed=1)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert len(set(order)) == len(order) == len(sampler)
    assert set(order) <= set(range(len(lengths)))
    if len(lengths) >= batch_size:
        assert len(order) % batch_size == 0
        assert len(lengths) - len(order) < batch_size
    else:
        assert len(order) == len(lengths)
    assert list(sampler) == order


@given(lengths_of_texts, st.integers(1, 16), st.integers(0, 3), st.integers(1, 4))
def test_the_batch_that_needs_most_memory_comes_first_in_every_epoch(lengths, batch_size, epoch, megabatch):
    sampler = LengthGroupedSampler(lengths, batch_size, seed=1, batches_per_megabatch=megabatch)
    sampler.set_epoch(epoch)
    order = list(sampler)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    padded = [len(batch) * max(lengths[index] for index in batch) for batch in batches]
    assert padded[0] == max(padded)


def test_all_but_the_first_batch_come_in_random_order():
    order = list(LengthGroupedSampler(list(range(64)), 4, seed=0))
    longest = [max(order[start : start + 4]) for start in range(0, 64, 4)]
    assert longest[0] == 63
    assert longest[1:] != sorted(longest[1:], reverse=True)


def test_texts_that_are_left_out_are_others_in_each_epoch():
    sampler = LengthGroupedSampler([3] * 11, 4, seed=0)
    seen = set()
    for epoch in range(10):
        sampler.set_epoch(epoch)
        seen |= set(sampler)
    assert seen == set(range(11))


def test_epochs_and_seeds_differ():
    sampler = LengthGroupedSampler(list(range(64)), 4, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(LengthGroupedSampler(list(range(64)), 4, seed=2)) != first


def test_batches_hold_similar_lengths():
    lengths = [i % 10 for i in range(400)]
    order = list(LengthGroupedSampler(lengths, 8, seed=0))
    for start in range(0, 400, 8):
        batch = [lengths[i] for i in order[start : start + 8]]
        assert max(batch) - min(batch) <= 1


def test_sentences_pad_less_than_a_twentieth():
    generator = torch.Generator().manual_seed(0)
    # as the tokens of short sentences are distributed: most near ten, a long tail, cut at 64
    lengths = (torch.empty(8000).log_normal_(2.3, 0.6, generator=generator).int() + 2).clamp_max(64)
    order = torch.tensor(list(LengthGroupedSampler(lengths, 32, seed=0)))
    padded = lengths[order].view(-1, 32).amax(1).sum() * 32
    assert lengths[order].sum() / padded > 0.95


# ---- what a corpus holds, whatever holds the corpus ----

IDS = [[0, 7, 9, 2], [0, 5, 2], [0, 2], [0, 8, 8, 8, 2]]


def backwards(batch):
    return {"input_ids": [row[::-1] for row in batch["input_ids"]]}


HOLDERS = {
    "Dataset": lambda: datasets.Dataset.from_dict({"input_ids": IDS}),
    "more columns": lambda: datasets.Dataset.from_dict({"input_ids": IDS, "labels": [1, 0, 1, 0]}),
    "rows": lambda: [{"input_ids": row} for row in IDS],
    "rows of tensors": lambda: [{"input_ids": torch.tensor(row)} for row in IDS],
    "torch format": lambda: datasets.Dataset.from_dict({"input_ids": IDS}).with_format("torch"),
    "int32": lambda: datasets.Dataset.from_dict({"input_ids": IDS}).cast_column(
        "input_ids", datasets.Sequence(datasets.Value("int32"))
    ),
    "select": lambda: datasets.Dataset.from_dict({"input_ids": IDS[::-1]}).select([3, 2, 1, 0]),
    "concatenated": lambda: datasets.concatenate_datasets(
        [datasets.Dataset.from_dict({"input_ids": part}) for part in (IDS[:1], IDS[1:])]
    ),
    "transform": lambda: datasets.Dataset.from_dict({"input_ids": [row[::-1] for row in IDS]}).with_transform(
        backwards
    ),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_corpus_is_the_same_whatever_holds_it(holder):
    corpus = HOLDERS[holder]()
    assert digest_of_texts(corpus) == digest_of_texts(HOLDERS["rows"]())
    assert list(text_lengths(corpus)) == [4, 3, 2, 5]
    assert occurring_tokens(corpus).tolist() == [0, 2, 5, 7, 8, 9]


def test_the_digest_tells_corpora_apart():
    others = {
        "one id": [[0, 7, 9, 2], [0, 6, 2], *IDS[2:]],
        "where texts end": [[0, 7, 9, 2, 0], [5, 2], *IDS[2:]],
        "order": [IDS[1], IDS[0], *IDS[2:]],
        "a text less": IDS[:-1],
        "an empty text more": [*IDS, []],
    }
    digests = {name: digest_of_texts([{"input_ids": row} for row in ids]) for name, ids in others.items()}
    assert len({digest_of_texts(HOLDERS["rows"]()), *digests.values()}) == 1 + len(others), digests


def test_a_sample_speaks_for_the_whole_corpus_in_order_of_length():
    """A corpus that is ordered by language must not be known by its first languages alone."""
    rows = [{"input_ids": [0] * (1 + index)} for index in range(200)]
    sample = [len(row["input_ids"]) for row in sample_of_texts(rows, 50, seed=3)]
    assert sample == sorted(set(sample))
    assert len(sample) == 50
    assert sum(length > 100 for length in sample) > 15
    assert sample == [len(row["input_ids"]) for row in sample_of_texts(rows, 50, seed=3)]
    assert sample != [len(row["input_ids"]) for row in sample_of_texts(rows, 50, seed=4)]
    assert len(sample_of_texts(rows, 300)) == 200
    assert [len(row["input_ids"]) for row in sample_of_texts(iter(rows), 3)] == [1, 2, 3]
