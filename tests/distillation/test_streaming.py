"""Texts that come as a stream: shares of processes, and where a resumed training goes on."""

import pytest
import torch
from tiny_distillation import TEXTS, PlainStream, make_dataset, make_trainer, read_texts, weights
from transformers import TrainerCallback

from kdnas_hf.data.streaming import StreamShare

KINDS = ["stream1", "stream4", "shuffled2", "plain"]


def texts_of(kind, tokenizer):
    return [tuple(row["input_ids"]) for row in make_dataset(kind, tokenizer)]


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_shares_are_the_stream_without_overlap(tokenizer, kind, processes):
    shares = []
    for process in range(processes):
        share = StreamShare(make_dataset(kind, tokenizer), process, processes, endless=False)
        shares.append([tuple(row["input_ids"]) for row in share])
    assert sorted(text for share in shares for text in share) == sorted(texts_of(kind, tokenizer))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_an_endless_share_begins_again_and_an_empty_one_ends(tokenizer):
    rows = [{"input_ids": [n]} for n in range(3)]
    endless = iter(StreamShare(PlainStream(rows), 1, 2, endless=True))
    assert [next(endless)["input_ids"] for _ in range(3)] == [[1], [1], [1]]
    assert list(StreamShare(PlainStream([]), 0, 1, endless=True)) == []
    shuffled = iter(StreamShare(make_dataset("shuffled2", tokenizer), 0, 1, endless=True))
    first, second = ([tuple(next(shuffled)["input_ids"]) for _ in range(TEXTS)] for _ in range(2))
    assert first != second
    assert sorted(first) == sorted(second)


@pytest.mark.parametrize("kind", ["stream1", "shuffled2"])
def test_a_resumed_stream_goes_on_after_the_checkpoint(tmp_path, kind):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 40  # in the second pass through 32 batches

    whole = make_trainer(tmp_path / "whole", kind, max_steps=44, save_strategy="no")
    whole.train()
    saving = {"max_steps": 44, "save_strategy": "steps", "save_steps": 10}
    make_trainer(tmp_path / "cut", kind, callbacks=[Stop()], **saving).train()
    resumed = make_trainer(tmp_path / "cut", kind, **saving)
    resumed.train(resume_from_checkpoint=True)
    # it goes through what was read before, without training on it
    assert read_texts(resumed) == read_texts(whole)
    assert resumed.trained_tokens == whole.trained_tokens
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
