"""A distillation that is killed goes on from its last checkpoint as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "tiny_distillation.py"
ARGUMENTS = ("--max_steps", "60", "--save_steps", "5", "--save_strategy", "steps")  # two epochs of 32 steps


def start(folder, resume):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), "map", resume, *ARGUMENTS],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output[-3000:]


def kill_at(process, checkpoint, seconds=90):
    end = time.monotonic() + seconds
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < end
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_training_ends_with_the_same_weights(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    reference = start(undisturbed, "anew")
    # while checkpoint 10 is being written, and again in the second epoch
    kill_at(start(killed, "anew"), killed / "checkpoint-10")
    kill_at(start(killed, "resume"), killed / "checkpoint-40")
    assert not (killed / "weights.safetensors").exists()
    finish(start(killed, "resume"))
    finish(reference)
    expected, found = (load_file(folder / "weights.safetensors") for folder in (undisturbed, killed))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    tokens = [json.loads((folder / "process_0.json").read_text())["tokens"] for folder in (undisturbed, killed)]
    assert tokens[0] == tokens[1]
