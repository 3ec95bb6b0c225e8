"""The order of the training texts."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from kdnas_hf.distillation import LengthGroupedSampler


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(1, 16), st.integers(0, 3))
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
