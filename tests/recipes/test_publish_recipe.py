"""`recipes/publish.py`: a dry run from the command line, and bad input."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from example_evidence import save_example_student
from transformers import AutoModel

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "publish.py"


@pytest.fixture
def recipe():
    spec = importlib.util.spec_from_file_location("publish_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def student(tmp_path, tokenizer):
    return save_example_student(tmp_path / "student", tokenizer)


def test_a_dry_run_prints_the_card_and_lists_the_files(recipe, student, tmp_path, capsys):
    recipe.main([str(student), "--dry_run"])
    shown = capsys.readouterr()
    assert "# KDNAS 1x16" in shown.out
    assert "model.safetensors" in shown.out + shown.err
    assert "nothing was sent" in shown.out + shown.err
    assert {path.name for path in tmp_path.iterdir()} == {"student"}


def test_native_leaves_a_stock_checkpoint(recipe, student, tmp_path):
    recipe.main([str(student), "--native"])
    assert type(AutoModel.from_pretrained(tmp_path / "student-published")).__name__ == "XLMRobertaModel"


def test_arguments_come_from_a_file_as_well(recipe, student, tmp_path):
    (tmp_path / "publish.yaml").write_text(f"student: {student}\noutput_dir: {tmp_path / 'out'}\ncustom_code: true\n")
    recipe.main([str(tmp_path / "publish.yaml")])
    assert (tmp_path / "out" / "modeling_kdnas.py").is_file()


def test_errors_are_one_message_without_a_traceback(tmp_path):
    result = subprocess.run(
        [sys.executable, str(RECIPE), str(tmp_path / "none"), "--dry_run"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 1
    assert "error: student=" in result.stderr
    assert "Traceback" not in result.stderr
