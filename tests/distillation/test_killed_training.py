"""A distillation that is killed goes on from its last checkpoint as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_distillation import make_trainer, weights

SCRIPT = Path(__file__).parent / "tiny_distillation.py"
SAVING = {"max_steps": 60, "save_strategy": "steps", "save_steps": 5}  # two epochs of 32 steps


def kill_at(process, checkpoint, seconds=120):
    end = time.monotonic() + seconds
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < end
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_training_ends_with_the_same_weights(tmp_path):
    killed = tmp_path / "killed"
    arguments = [text for name, value in SAVING.items() for text in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(killed), "map", "deep", "anew", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    whole = make_trainer(tmp_path / "whole", **SAVING)
    whole.train()
    # while a checkpoint of the second epoch is being written
    kill_at(process, killed / "checkpoint-40")
    assert not (killed / "process_0.json").exists()
    resumed = make_trainer(killed, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
    assert resumed.trained_tokens == whole.trained_tokens
