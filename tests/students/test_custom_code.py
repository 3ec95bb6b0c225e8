"""Checkpoints that bring their code: it travels with every save, and loads in every way that transformers has."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoModelForTokenClassification

from kdnas_hf.students import (
    KDNASConfig,
    KDNASForMaskedLM,
    KDNASForQuestionAnswering,
    KDNASForSequenceClassification,
    KDNASForTokenClassification,
    KDNASModel,
)

CODE = {"configuration_kdnas.py", "modeling_kdnas.py"}
CLASSES = [
    KDNASModel,
    KDNASForMaskedLM,
    KDNASForSequenceClassification,
    KDNASForTokenClassification,
    KDNASForQuestionAnswering,
]


def make_student(kind=KDNASModel, vocabulary=145):
    """One that cannot be a stock checkpoint: its layers differ, and its embeddings are factorised."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = KDNASConfig(
            vocab_size=vocabulary, hidden_size=16, num_hidden_layers=2, num_attention_heads=[2, 4],
            intermediate_size=[32, 16], hidden_act=["gelu", "relu"], embedding_size=8, max_position_embeddings=40,
        )  # fmt: skip
        return kind(config).eval()


def states(model):
    return model(input_ids=torch.arange(5, 15)[None])[0].detach()


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_code_travels_with_every_class(kind, tmp_path):
    make_student(kind).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= CODE
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {
        "AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification", "AutoModelForQuestionAnswering",
    }  # fmt: skip
    for name in CODE:  # what a file imports from its siblings must be one that is fetched with it
        text = (tmp_path / name).read_text()
        relative = [line for line in text.splitlines() if line.startswith("from .")]
        assert all(line.startswith("from .configuration_kdnas import") for line in relative)


def test_other_ways_to_load_give_the_same(tmp_path):
    student = make_student()
    student.save_pretrained(tmp_path / "whole")
    expected = states(student)
    for arguments in ({}, {"device_map": "cpu"}, {"low_cpu_mem_usage": True}, {"attn_implementation": "eager"}):
        loaded = AutoModel.from_pretrained(tmp_path / "whole", **arguments).eval()
        torch.testing.assert_close(states(loaded), expected)
    student.save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert {path.name for path in (tmp_path / "sharded").iterdir()} >= CODE
    torch.testing.assert_close(states(AutoModel.from_pretrained(tmp_path / "sharded").eval()), expected)


def test_a_dtype_is_honoured(tmp_path):
    make_student().save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert AutoModel.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32
    config = make_student().config
    assert KDNASModel._from_config(config, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert AutoModelForTokenClassification.from_config(config).config.num_labels == 2


FINE_TUNE = """
import json, sys
sys.modules["kdnas_hf"] = None  # it is not installed there
import torch
from pathlib import Path
from transformers import AutoModelForTokenClassification as Model, Trainer, TrainingArguments
folder, run = sys.argv[1:]

def trainer(steps):
    torch.manual_seed(0)
    model = Model.from_pretrained(folder, trust_remote_code=True, num_labels=3)
    rows = [{"input_ids": list(range(5 + i, 13 + i)), "labels": [i % 3] * 8} for i in range(8)]
    arguments = TrainingArguments(run, max_steps=steps, save_steps=2, per_device_train_batch_size=2, report_to="none",
                                  use_cpu=True, learning_rate=1e-2, lr_scheduler_type="constant")
    return Trainer(model, arguments, train_dataset=rows)

trainer(2).train()
resumed = trainer(4)
resumed.train(resume_from_checkpoint=f"{run}/checkpoint-2")
names = {name: sorted(p.name for p in Path(run, name).iterdir()) for name in ("checkpoint-2", "checkpoint-4")}
again = Model.from_pretrained(f"{run}/checkpoint-4", trust_remote_code=True).eval()
inputs = {"input_ids": torch.arange(5, 15)[None]}
difference = (again(**inputs)[0] - resumed.model.eval()(**inputs)[0]).abs().max().item()
print(json.dumps({"names": names, "steps": resumed.state.global_step, "difference": difference,
                  "class": type(again).__name__, "module": type(again).__module__}))
"""


def test_fine_tuning_where_kdnas_hf_is_not_installed_keeps_the_code_and_resumes(tmp_path):
    make_student().save_pretrained(tmp_path / "student")
    result = subprocess.run(
        [sys.executable, "-c", FINE_TUNE, str(tmp_path / "student"), str(tmp_path / "run")],
        capture_output=True, text=True, timeout=180, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "", "HF_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["steps"] == 4
    assert found["difference"] == 0
    assert found["class"] == "KDNASForTokenClassification"
    assert found["module"].startswith("transformers_modules")  # the code of the checkpoint
    for names in found["names"].values():
        assert set(names) >= CODE
    # and here, where it is installed
    assert type(AutoModelForTokenClassification.from_pretrained(tmp_path / "run" / "checkpoint-4")).__name__ == (
        "KDNASForTokenClassification"
    )
