"""`recipes/distill.py`: a student of a given shape, resumed where it was killed, and bad input."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from kdnas_hf import (
    Architecture,
    DataArguments,
    DistillationTrainingArguments,
    StudentArguments,
    TeacherArguments,
    parse_arguments,
)
from tiny_teacher import make_texts

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "distill.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("distill_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def settings(teacher_path, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "de.txt").write_text("\n".join(make_texts(300, 1)) + "\n")
    return {
        "teacher": str(teacher_path),
        "dataset": [str(texts / "*.txt")],
        "heldout_sentences": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "global_train_batch_size": 8,
        "num_train_epochs": 4,
        "learning_rate": 5e-3,
        "save_steps": 20,
        "report_to": "none",
        "use_cpu": True,
    }


def write(settings, folder, **changes):
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings | {"output_dir": str(folder)} | changes))
    return str(path)


def test_the_configuration_of_the_recipe_parses():
    _, data, student, training = parse_arguments(
        (TeacherArguments, DataArguments, StudentArguments, DistillationTrainingArguments),
        [str(ROOT / "recipes" / "configs" / "distill.yaml"), "--use_cpu", "true"],
    )
    assert data.dataset == ["embedded"]
    assert str(student.architecture) == "3x288 heads 6 ffn 1024 gelu"
    assert training.loss_weights == {"hidden_states": 1.0}


def test_layers_may_differ_on_the_command_line_and_in_a_file(tmp_path):
    file = tmp_path / "shape.yaml"
    file.write_text("num_hidden_layers: 2\nhidden_size: 24\nnum_attention_heads: [2, 3]\nintermediate_size: 32\n")
    (student,) = parse_arguments(
        (StudentArguments,), [str(file), "--hidden_act", "relu", "gelu", "--embedding_size", "8"]
    )
    assert student.architecture == Architecture(2, (2, 3), 24, 32, ("relu", "gelu"), embedding_size=8)
    with pytest.raises(ValueError, match=r"num_attention_heads=\[2, 3\] has 2 values for num_hidden_layers=3"):
        parse_arguments((StudentArguments,), [str(file), "--num_hidden_layers", "3"])


def test_it_leaves_a_student_that_loads_and_what_it_explains(recipe, settings, tmp_path):
    recipe.main([write(settings, tmp_path / "run")])
    student = tmp_path / "run" / "student"
    model, tokenizer = AutoModel.from_pretrained(student), AutoTokenizer.from_pretrained(student)
    assert model(**tokenizer("bap dat", return_tensors="pt")).last_hidden_state.isfinite().all()
    assert model.config.num_hidden_layers == 2
    measured = json.loads((tmp_path / "run" / "heldout.json").read_text())["eval_r2"]
    assert 0 < measured < 1
    card = (student / "README.md").read_text()
    assert f"| R² of the teacher's last layer on held-out text | {measured:.3f} |" in card
    assert "chosen by hand" in card
    assert str(tmp_path) not in card


def test_started_again_after_its_end_it_trains_no_more(recipe, settings, tmp_path):
    config = write(settings, tmp_path / "run")
    recipe.main([config])
    weights = load_file(tmp_path / "run" / "student" / "model.safetensors")
    first = json.loads((tmp_path / "run" / "heldout.json").read_text())
    recipe.main([config])
    for name, value in load_file(tmp_path / "run" / "student" / "model.safetensors").items():
        assert torch.equal(value, weights[name])
    again = json.loads((tmp_path / "run" / "heldout.json").read_text())
    assert again["eval_r2"] == first["eval_r2"]
    assert again["eval_trained_tokens"] == first["eval_trained_tokens"]


@pytest.mark.long
def test_killed_it_goes_on_to_the_same_student(recipe, settings, tmp_path):
    recipe.main([write(settings, tmp_path / "whole")])
    config = write(settings, tmp_path / "killed")
    process = subprocess.Popen([sys.executable, str(RECIPE), config], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoint-40" / "trainer_state.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    recipe.main([config])
    whole, killed = (
        load_file(tmp_path / name / "student" / "model.safetensors") for name in ("whole", "killed")
    )  # fmt: skip
    for name, value in whole.items():
        torch.testing.assert_close(killed[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3}, "hidden_size=16 is not divisible by num_attention_heads=3"),
        ({"losses": ["logist"]}, "did you mean 'logits'"),
        ({"num_hidden_layer": 2}, "did you mean num_hidden_layers"),
        ({"layer_mapping": "1:9"}, "the teacher has layers 1 to 4"),
    ],
)
def test_bad_input_leaves_nothing_behind(recipe, settings, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        recipe.main([write(settings, tmp_path / "run", **changes)])
    recipe.main([write(settings, tmp_path / "run", max_steps=2)])  # not taken for another run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": ["hidden_state"]}, "losses: 'hidden_state' is unknown; did you mean 'hidden_states'"),
        ({"losses": ["hidden_states:0"]}, "losses: the weight of 'hidden_states:0' is not a positive"),
        ({"losses": ["hidden_states:-1"]}, "losses: the weight of 'hidden_states:-1' is not a positive"),
        ({"losses": ["labels"]}, "losses: 'labels' reads the labels of a task's data, and text has none; leave it out"),
        ({"stages": [{"losses": "soft_labels"}]}, "losses: 'soft_labels' reads the labels"),
        ({"losses": ["logits"]}, r"has no masked language modeling head \(it is a .*\); choose a teacher that has one"),
        ({"stages": [{"losses": "hidden_states"}, {"losses": "logits"}]}, "has no masked language modeling head"),
        ({"stages": [{"loss": "cosine"}]}, "stages: 'loss' is not a field; did you mean 'losses'"),
        ({"stages": [{"trains": []}]}, r"stages: trains=\[\] trains nothing"),
        ({"stages": [{"trains": "head"}]}, "stages: trains=head trains nothing by hidden_states"),
        ({"student_layers": [1, 5], "hidden_size": 32}, r"student_layers=\[1, 5\]: the teacher has layers 1 to 4"),
        ({"student_layers": [1, 2]}, "hidden_size=16 cannot start as copies of layers of a teacher of hidden size 32"),
        ({"student_init": "layers"}, "hidden_size=16 cannot start as copies"),
        ({"fp16": True}, "fp16=true needs an accelerator; choose bf16=true on a CPU"),
    ],
)
def test_bad_losses_stages_and_starts_are_one_line_before_the_teacher_is_loaded(
    recipe, settings, tmp_path, changes, message, monkeypatch
):
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *args, **kwargs: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match=message) as error:
        recipe.main([write(settings, tmp_path / "run", **changes)])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_another_run_is_refused(recipe, settings, tmp_path):
    recipe.main([write(settings, tmp_path / "run", max_steps=2)])
    with pytest.raises(ValueError, match="student.hidden_size: 16 there, 8 now"):
        recipe.main([write(settings, tmp_path / "run", max_steps=2, hidden_size=8)])
