"""Texts that come as a stream: shares of processes, and where a resumed training goes on."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_distillation import TEXTS, PlainStream, make_dataset, make_trainer, weights
from transformers import TrainerCallback

from kdnas_hf.distillation import StreamShare

SCRIPT = Path(__file__).parent / "tiny_distillation.py"
KINDS = ["stream1", "stream4", "shuffled2", "plain"]


def flat(batches):
    return [tuple(text) for batch in batches for text in batch]


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


@pytest.mark.long
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_read_the_whole_stream_once(tokenizer, tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT),
        str(tmp_path), "stream1", "anew", "--max_steps", "16", "--per_device_train_batch_size", "4",
        "--gradient_accumulation_steps", "2", "--save_strategy", "no",
    ]  # fmt: skip
    run = partial(subprocess.run, command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    try:
        result = run(timeout=120)
    except subprocess.TimeoutExpired:  # seen once in about twenty runs, on a busy machine; why is not known
        result = run(timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"process_{n}.json").read_text()) for n in range(2))
    assert sorted(flat(first["read"]) + flat(second["read"])) == sorted(texts_of("stream1", tokenizer))
    assert first["tokens"] == sum(len(text) for text in texts_of("stream1", tokenizer))
    assert first["heldout"] == second["heldout"]  # each evaluates its own share, the result is of all


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
    assert resumed.data_collator.batches == whole.data_collator.batches
    assert resumed.trained_tokens == whole.trained_tokens
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
