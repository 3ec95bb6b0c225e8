"""Several processes: students divided among them, or one student on a share of the texts each."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_distillation import make_dataset, make_trainer, measured, weights

SCRIPT = Path(__file__).parent / "tiny_distillation.py"
POOL = ["small", "deep", "wide"]
COMMON = {
    "max_steps": 8,
    "global_train_batch_size": 16,
    "cache_teacher_states": "false",
    "save_strategy": "steps",
    "save_steps": 4,
}
JOBS = {  # of two processes, one after the other: students, how to start, and what differs
    "divided": ([*POOL, "poisoned"], "anew", {}),
    "stored": (POOL, "anew", {"cache_teacher_states": "true"}),
    "resumed": (POOL, "resume", {"cache_teacher_states": "true"}),
    "single": (["deep"], "anew", {"gradient_accumulation_steps": 2}),
    "stream": (["deep"], "anew", {"gradient_accumulation_steps": 2, "max_steps": 16}),
}

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")


class Run:
    """What two processes left of a job."""

    def __init__(self, folder):
        self.records = [json.loads((folder / f"process_{n}.json").read_text()) for n in range(2)]
        self.parts = [load_file(folder / f"process_{n}.safetensors") for n in range(2)]
        self.weights = self.parts[0] | self.parts[1]


def alone(folder, name, **changes):
    """The same training in one process."""
    students, _, own = JOBS[name]
    kind = "stream1" if name == "stream" else "map"
    return make_trainer(folder, kind, students, **COMMON | own | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes ran all jobs; the checkpoint that one of them resumes is of one process."""
    folder = tmp_path_factory.mktemp("processes")
    begun = alone(folder / "begun", "resumed", save_total_limit=None)
    begun.train()
    shutil.copytree(folder / "begun" / "checkpoint-4", folder / "resumed" / "checkpoint-4")
    jobs = []
    for name, (students, start, changes) in JOBS.items():
        kind = "stream1" if name == "stream" else "map"
        arguments = [f"--{key} {value}" for key, value in (COMMON | changes).items()]
        jobs.append(" ".join([str(folder / name), kind, ",".join(students), start, *arguments]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    result = subprocess.run(
        [*command, *" then ".join(jobs).split()],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, **tolerance, msg=lambda text, key=key: f"{key}: {text}")


def test_students_that_two_processes_divide_learn_as_in_one(folder):
    run, trainer = Run(folder / "divided"), alone(folder / "alone", "divided")
    trainer.train()
    held = [record["students"] for record in run.records]
    assert not set(held[0]) & set(held[1])
    assert sorted(held[0] + held[1]) == sorted(JOBS["divided"][0])
    for part, names in zip(run.parts, held, strict=True):
        assert {key.split(".")[1] for key in part} == set(names)
    assert_same(run.weights, weights(trainer), rtol=1e-6, atol=1e-6, equal_nan=True)
    metrics = measured(trainer)
    for record in run.records:
        assert record["metrics"] == pytest.approx(metrics, rel=1e-6)
        assert record["tokens"] == trainer.trained_tokens


def test_a_student_that_one_process_dropped_is_known_to_both(folder):
    for record in Run(folder / "divided").records:
        assert record["dropped"] == {"poisoned": "its loss was not finite at step 3"}
        assert "eval_deep_loss" in record["metrics"]
        assert "eval_poisoned_loss" not in record["metrics"]


def test_with_stored_targets_divided_students_are_those_of_one_process_bit_by_bit(folder):
    run, trainer = Run(folder / "stored"), alone(folder / "alone_stored", "stored")
    trainer.train()
    assert_same(run.weights, weights(trainer), rtol=0, atol=0)


def test_checkpoints_resume_in_another_number_of_processes(folder):
    whole = alone(folder / "whole", "stored")
    whole.train()
    # one process began and two went on
    assert_same(Run(folder / "resumed").weights, weights(whole), rtol=0, atol=0)
    # two began and one goes on
    resumed = alone(folder / "stored", "stored")
    resumed.train(resume_from_checkpoint=str(folder / "stored" / "checkpoint-4"))
    assert_same(weights(resumed), weights(whole), rtol=0, atol=0)
    assert resumed.trained_tokens == whole.trained_tokens


def test_one_student_on_two_processes_learns_as_on_one(folder):
    run, trainer = Run(folder / "single"), alone(folder / "alone_single", "single")
    trainer.train()
    assert_same(run.parts[1], run.parts[0], rtol=0, atol=0)
    assert_same(run.weights, weights(trainer), rtol=1e-5, atol=1e-5)
    metrics = measured(trainer)
    for record in run.records:  # each evaluates its own share, and the result is of all
        assert record["metrics"] == pytest.approx(metrics, rel=1e-4)
        assert record["tokens"] == trainer.trained_tokens


def test_two_processes_read_a_whole_stream_once(folder, tokenizer):
    run = Run(folder / "stream")
    read = [tuple(text) for record in run.records for batch in record["read"] for text in batch]
    texts = [tuple(row["input_ids"]) for row in make_dataset("stream1", tokenizer)]
    assert sorted(read) == sorted(texts)
    assert run.records[0]["tokens"] == sum(map(len, texts))
    assert run.records[0]["metrics"] == run.records[1]["metrics"]
