"""A teacher that is sharded over two processes teaches what a whole one teaches."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kdnas_hf import DistillationTrainingArguments

WORKER = Path(__file__).parent / "sharded_worker.py"
CONFIGURATIONS = Path(__file__).parents[2] / "recipes" / "accelerate"
ENVIRONMENT = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_ZERO_STAGE")

gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="needs gloo"
)
deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")


def start(folder, *arguments, launcher=()):
    folder.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    result = subprocess.run(
        [sys.executable, *launcher, str(WORKER), str(folder), *arguments],
        env=environment, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(path.read_text()) for path in sorted(folder.glob("process_*.json"))]


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def accelerate(tmp_path, name):
    """A configuration of the recipes, on two CPU processes."""
    values = yaml.safe_load((CONFIGURATIONS / name).read_text()) | {"num_processes": 2, "use_cpu": True}
    path = tmp_path / name
    path.write_text(yaml.safe_dump(values))
    return ("-m", "accelerate.commands.launch", "--config_file", str(path), "--main_process_port", "0")


def assert_same(one, folder, two, other):
    """The same losses, metrics and weights; Adam turns a last bit of a tiny gradient into more than that."""
    assert len(two) == two[0]["processes"] == 2
    for result in two:
        assert result["is_sharded"]
        assert result["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert result["metrics"] == pytest.approx(one["metrics"], rel=1e-4, abs=1e-6)
        assert not result["trainable"]
        assert result["table_is_shared"]
        # what cannot be halved is padded
        assert result["held"] == pytest.approx(result["whole"] / 2, rel=0.01)
        assert result["whole"] == one["held"]
    expected, found = load_file(folder / "weights.safetensors"), load_file(other / "weights.safetensors")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    (result,) = start(folder)
    assert not result["is_sharded"]
    return result, folder


@gloo
def test_fsdp_shards_the_teacher_and_changes_nothing(whole, tmp_path):
    results = start(tmp_path / "run", launcher=accelerate(tmp_path, "fsdp2.yaml"))
    assert_same(*whole, results, tmp_path / "run")


@gloo
@deepspeed
def test_zero3_shards_the_teacher_and_changes_nothing(whole, tmp_path):
    results = start(tmp_path / "run", "--shard_teacher", "zero3", launcher=TORCHRUN)
    assert_same(*whole, results, tmp_path / "run")


@pytest.fixture
def launched(monkeypatch):
    """Environment variables as a launcher sets them, gone afterwards."""
    monkeypatch.setenv("KDNAS_SHARD_TEACHER", "no")
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


def make_arguments(tmp_path, **kwargs):
    return DistillationTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **kwargs)


def test_a_launch_with_fsdp_shards_the_teacher_alone(launched, tmp_path):
    launched("ACCELERATE_USE_FSDP", "true")
    assert make_arguments(tmp_path).shard_teacher == "fsdp"
    assert "ACCELERATE_USE_FSDP" not in os.environ  # students are not wrapped
    assert make_arguments(tmp_path).shard_teacher == "fsdp"  # whatever is made later
    assert make_arguments(tmp_path, shard_teacher="no").shard_teacher == "no"


def test_without_a_word_nothing_is_sharded(launched, tmp_path):
    assert make_arguments(tmp_path).shard_teacher == "no"
    with pytest.raises(ValueError, match="choose from auto, no, fsdp, zero3"):
        make_arguments(tmp_path, shard_teacher="fsdp2")


def test_deepspeed_stages_that_leave_the_teacher_whole_are_refused(launched, tmp_path):
    launched("ACCELERATE_USE_DEEPSPEED", "true")
    launched("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    with pytest.raises(ValueError, match="zero_stage=2 leaves the teacher whole"):
        make_arguments(tmp_path)


def test_zero3_without_deepspeed_says_what_to_install(launched, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ImportError, match="pip install deepspeed"):
        make_arguments(tmp_path, shard_teacher="zero3")


def test_a_sharded_teacher_is_not_moved_or_rounded(teacher):
    teacher.sharded = teacher.model
    assert teacher.to("meta").device == torch.device("cpu")
    with pytest.raises(ValueError, match="sharded in torch.float32"):
        teacher.to_dtype(torch.bfloat16)


@pytest.mark.parametrize("path", sorted(CONFIGURATIONS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path):
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_processes >= 2
