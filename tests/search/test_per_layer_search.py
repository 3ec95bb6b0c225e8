"""A search among students whose layers differ and whose word embeddings have a size of their own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch
from test_search import outcome, wait_for
from tiny_search import PER_LAYER_SPACE, tiny_search
from transformers import AutoModel, AutoTokenizer

from kdnas_hf import KDNASModel, SearchSpace
from kdnas_hf.hub.staging import why_custom_code
from kdnas_hf.search import Trial

SCRIPT = Path(__file__).parent / "tiny_search.py"
SPACE = SearchSpace.from_dict(PER_LAYER_SPACE)


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tiny_search(tmp_path_factory.mktemp("run"), space=SPACE, num_episodes=2, controller="bayesian").run()


def test_candidates_differ_by_layer_and_are_kept(finished):
    assert not SPACE.is_enumerable
    found = finished.trials
    assert len(found) == 6
    assert all(one.architecture in SPACE for one in found)
    assert any(not one.architecture.is_homogeneous for one in found)
    assert any(one.architecture.embedding_size for one in found)
    assert all(one.state == "complete" for one in found)
    assert [Trial.from_json(one.to_json()) for one in found] == found
    study = optuna.load_study(study_name="kdnas", storage=f"sqlite:///{finished.folder}/study.db")
    for stored, one in zip(study.trials, found, strict=True):
        assert stored.params == SPACE.encode(one.architecture)
    report = (finished.folder / "report.md").read_text()
    assert all(str(one.architecture) in report for one in found)


def test_the_best_student_loads_as_it_was_found(finished):
    (student,) = finished.students
    path = finished.folder / student.path
    model, tokenizer = AutoModel.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    assert isinstance(model, KDNASModel)
    assert model.config.attention_heads_per_layer == student.architecture.per_layer("num_attention_heads")
    assert model.config.intermediate_sizes_per_layer == student.architecture.per_layer("intermediate_size")
    assert model.config.activations_per_layer == student.architecture.per_layer("hidden_act")
    assert model.config.word_embedding_size == student.architecture.word_embedding_size
    assert sum(p.numel() for p in model.parameters()) == student.parameters
    assert model(**tokenizer("bap dat", return_tensors="pt"))[0].isfinite().all()
    if not (student.architecture.is_homogeneous and student.architecture.embedding_size is None):
        assert why_custom_code(path)  # it is published with its code


def test_a_finished_search_is_read_again(finished):
    again = tiny_search(finished.folder, space=SPACE, num_episodes=2, controller="bayesian").run()
    assert again.students == finished.students


@pytest.mark.long
def test_a_killed_search_ends_with_the_same_architectures(finished, tmp_path):
    view = tmp_path / "architectures.jsonl"
    process = subprocess.Popen(
        [sys.executable, SCRIPT, tmp_path, "bayesian", "0.05", "per_layer"],
        env={**os.environ, "PYTHONHASHSEED": "0"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    wait_for(lambda: view.exists() and len(view.read_bytes().splitlines()) >= 3, process)
    assert process.poll() is None, process.stdout.read().decode()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    tiny_search(tmp_path, space=SPACE, num_episodes=2, controller="bayesian").run()
    for one, whole in zip(outcome(tmp_path), outcome(finished.folder), strict=True):
        assert one[:2] == whole[:2]
        assert one[2:] == pytest.approx(whole[2:], rel=1e-3)
    results = [json.loads((folder / "distillation.json").read_text())[0] for folder in (tmp_path, finished.folder)]
    assert results[0]["architecture"] == results[1]["architecture"]
