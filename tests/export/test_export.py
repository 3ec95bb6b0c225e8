"""Exporting a student: checked, measured, reported; refused where it is worse than its bounds."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_students import make_student
from tiny_tasks import ENTITY_TASK, TOPIC_TASK, entity_rows, save_tiny_student, topic_rows, write_rows, write_topics

from kdnas_hf import (
    DataArguments,
    ExportArguments,
    ExportError,
    FineTuningArguments,
    StudentEvidence,
    Task,
    export_student,
    load_task_data,
)
from kdnas_hf.evaluation import METRICS, ModelSource, fine_tune, score_languages
from kdnas_hf.export import BACKENDS, ArtefactCheck, export, read_exports
from kdnas_hf.hub import PublicationError, stage_student

RECIPE = Path(__file__).parents[2] / "recipes" / "export.py"
FAST = {"calibration_sentences": 20, "check_sentences": 20, "latency_repeats": 2, "latency_sequence_length": 8}


@pytest.fixture(autouse=True)
def _without_processes(monkeypatch):
    monkeypatch.setattr(export, "peak_memory_mb", lambda *args, **kwargs: 12.5)  # has its own test


@pytest.fixture
def recipe():
    spec = importlib.util.spec_from_file_location("export_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(student_folder, corpus, **kwargs):
    args = ExportArguments(student=str(student_folder), **FAST | {"teacher": "none"} | kwargs)
    return export_student(args, DataArguments(dataset=[str(corpus)]))


def flags(student_folder, corpus, *more):
    given = [str(student_folder), "--dataset", str(corpus)]
    given += [part for name, value in FAST.items() for part in (f"--{name}", str(value))]
    return [*given, *more]


def test_the_recipe_leaves_artefact_report_and_card(recipe, student_folder, corpus, teacher_path):
    recipe.main(flags(student_folder, corpus, "--format", "onnx", "--int8", "--teacher", str(teacher_path)))
    (record,) = read_exports(student_folder)
    assert (student_folder / record.file).is_file()
    assert record.backend == "onnx-int8"
    assert record.check.median_cosine > 0.99
    assert record.peak_memory_mb == 12.5
    rows = StudentEvidence.load(student_folder).latency
    assert [(row.backend, row.teacher_backend) for row in rows] == [
        ("ONNX Runtime, int8", None),
        ("ONNX Runtime, int8", "PyTorch eager, float32"),
    ]
    card = (student_folder / "README.md").read_text()
    assert "| `onnx/model_quantized.onnx` | ONNX Runtime, int8 |" in card
    assert 'ExportedModel.from_pretrained("<owner>/kdnas-2x32", backend="onnx-int8")' in card
    assert "ONNX Runtime, int8; the teacher in PyTorch eager, float32" in card
    assert not list(student_folder.glob(".export-*"))


def test_a_student_is_exported_for_several_backends_one_after_the_other(student_folder, corpus):
    for format in ("onnx", "openvino"):
        pytest.importorskip(format)
        run(student_folder, corpus, format=format)
    assert [record.backend for record in read_exports(student_folder)] == ["onnx", "openvino"]
    assert {record.check.max_difference < 1e-4 for record in read_exports(student_folder)} == {True}


def test_an_export_leaves_nothing_of_the_artefact_that_it_replaces(student_folder, corpus):
    leftover = student_folder / "onnx" / "model.onnx.data"  # as transformers' exporter lays weights beside its graph
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_bytes(b"weights of another graph")
    run(student_folder, corpus, format="onnx")
    assert [path.name for path in leftover.parent.iterdir()] == ["model.onnx"]


def test_an_artefact_below_its_bounds_is_refused_and_the_one_before_stays(student_folder, corpus):
    run(student_folder, corpus, format="onnx", int8=True)
    artefact = student_folder / "onnx" / "model_quantized.onnx"
    before = artefact.read_bytes()
    with pytest.raises(ExportError, match=r"ONNX Runtime, int8 is refused: the median cosine is 0\.9.* min_cosine=1"):
        run(student_folder, corpus, format="onnx", int8=True, min_cosine=1.0)
    assert artefact.read_bytes() == before
    assert len(read_exports(student_folder)) == 1
    assert not list(student_folder.glob(".export-*"))


def test_a_wrong_graph_is_refused(student_folder, corpus, monkeypatch):
    other = make_student(num_hidden_layers=1)
    make = export.make_artefact
    monkeypatch.setattr(export, "make_artefact", lambda model, *args, **kwargs: make(other, *args, **kwargs))
    with pytest.raises(ExportError, match="float32 outputs differ by"):
        run(student_folder, corpus, format="onnx")
    assert not (student_folder / "onnx").exists()


def test_the_recipe_fails_where_the_check_does(student_folder, corpus):
    given = flags(student_folder, corpus, "--format", "onnx", "--int8", "--min_cosine", "1")
    result = subprocess.run([sys.executable, str(RECIPE), *given], capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert "error: ONNX Runtime, int8 is refused" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "name", "rows"), [(TOPIC_TASK, "topic", topic_rows), (ENTITY_TASK, "entity", entity_rows)]
)
def test_a_head_is_scored_on_its_task_as_a_trainer_scores_it(text, name, rows, tmp_path, tokenizer, corpus):
    (tmp_path / "task.yaml").write_text(text)
    for part, count, seed in (("en-train", 90, 0), ("en-dev", 30, 1), ("de-test", 24, 2), ("sw-test", 24, 3)):
        write_rows(tmp_path / "data", f"{name}-{part}", rows(count, seed))
    data = load_task_data(Task.load(str(tmp_path / "task.yaml")), tmp_path / "data")
    save_tiny_student(tmp_path / "encoder", tokenizer, max_position_embeddings=66)
    budget = FineTuningArguments(
        num_train_epochs=8, patience=8, learning_rates=[3e-2], train_batch_size=16, max_length=32, auto_bf16=False,
        train_word_embeddings=True,
    )  # fmt: skip
    tuned = fine_tune(ModelSource(str(tmp_path / "encoder")), data, budget)
    scores, _ = score_languages(tuned.trainer, tokenizer, data, 32)
    primary = METRICS[data.task.metric].primary
    expected = 100 * np.mean([values[primary] for values in scores.values()])
    folder = tmp_path / "tuned"
    tuned.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    report = run(folder, corpus, format="onnx", task=str(tmp_path / "task.yaml"), data_dir=str(tmp_path / "data"))
    check = report.record.check
    assert check.torch_score == pytest.approx(expected)
    assert check.score == pytest.approx(expected)
    assert check.label_agreement == 1
    assert expected > 40  # it has learnt something to lose
    assert f"{data.task.metric} {expected:.1f} (PyTorch {expected:.1f})" in report.to_markdown()


def test_a_head_of_another_task_is_refused(student_folder, corpus, tmp_path, tokenizer):
    (tmp_path / "task.yaml").write_text(TOPIC_TASK)
    write_topics(tmp_path / "data")
    make_student("sequence", num_labels=2).save_pretrained(student_folder)
    with pytest.raises(ValueError, match="task='topic' has the labels .* the model's head .* that it was trained on"):
        run(student_folder, corpus, format="onnx", task=str(tmp_path / "task.yaml"), data_dir=str(tmp_path / "data"))


def test_artefacts_of_other_weights_are_not_published(student_folder, corpus, tmp_path):
    run(student_folder, corpus, format="onnx")
    stage_student(student_folder, tmp_path / "whole", without_scores=True)
    assert (tmp_path / "whole" / "onnx" / "model.onnx").is_file()
    make_student(hidden_act="relu", initializer_range=0.5).save_pretrained(student_folder)
    model = make_student()
    model.encoder.layer[0].output.dense.weight.data.mul_(2)
    model.save_pretrained(student_folder)
    with pytest.raises(PublicationError, match=r"onnx/model.onnx was exported from other weights .* export it again"):
        stage_student(student_folder, tmp_path / "stale", without_scores=True)


CHECK = ArtefactCheck(
    max_difference=0.1, median_cosine=0.995, low_cosine=0.9, label_agreement=0.99, rows=10, score=80.0,
    torch_score=80.5, score_name="accuracy",
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, None),
        ({"median_cosine": 0.98}, "the median cosine is 0.980000, less than min_cosine=0.99"),
        ({"median_cosine": float("nan")}, "the median cosine is nan"),
        ({"score": 79.0}, "the score drops by 1.5 points, more than max_score_drop=1"),
        ({"max_difference": float("inf")}, "its outputs are not all finite"),
    ],
)
def test_bounds(changes, complaint):
    failures = dataclasses.replace(CHECK, **changes).failures(BACKENDS["openvino-int8"])
    assert len(failures) == (complaint is not None)
    assert complaint is None or failures[0].startswith(complaint)


def test_float32_has_a_bound_of_its_own():
    (failure,) = CHECK.failures(BACKENDS["onnx"])
    assert failure == "float32 outputs differ by 1.0e-01, more than 0.001."
    assert dataclasses.replace(CHECK, max_difference=1e-5).failures(BACKENDS["onnx"]) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "tflite"}, "format='tflite' is unknown; choose from onnx, openvino"),
        ({"static": True}, "static is for --format onnx --int8; leave it out"),
        ({"format": "onnx", "reduce_range": True}, "reduce_range is for --format onnx --int8"),
        ({"calibration_sentences": 0}, "calibration_sentences=0 must be at least 1"),
        ({"min_cosine": 1.5}, "min_cosine=1.5 must be above 0 and at most 1"),
        ({"max_score_drop": -1}, "max_score_drop=-1 must not be negative"),
        ({"data_dir": "x"}, "data_dir is given without a task"),
    ],
)
def test_impossible_arguments_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ExportArguments(**values)


def test_bad_input_is_refused_before_anything_is_exported(student_folder, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "make_artefact", lambda *args, **kwargs: pytest.fail("something was exported"))
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        run(tmp_path / "nowhere", corpus, format="onnx")
    with pytest.raises(ValueError, match="latency_sequence_length=128 exceeds what the student reads"):
        run(student_folder, corpus, format="onnx", latency_sequence_length=128)
    with pytest.raises(ValueError, match="holds 200 sentences; lower them"):
        run(student_folder, corpus, format="onnx", calibration_sentences=300)
    with pytest.raises(ValueError, match="teacher='nobody' cannot be loaded"):
        run(student_folder, corpus, format="onnx", teacher="nobody")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (student_folder / name).unlink()
    with pytest.raises(ValueError, match="has no tokenizer"):
        run(student_folder, corpus, format="onnx")


def test_reports_say_what_was_measured(student_folder, corpus, teacher_path):
    report = run(student_folder, corpus, format="onnx", teacher=str(teacher_path))
    assert read_exports(student_folder) == [report.record]
    text = report.to_markdown()
    assert "### ONNX Runtime, float32" in text
    assert "faster than its teacher in the same backend" in text
    values = json.loads(report.to_json())
    assert set(values["latency"]["measurements"]) == {"teacher", "student", "exported", "exported teacher"}
    assert values["record"]["check"]["rows"] > 20
    assert np.isfinite(values["latency"]["measurements"]["exported"]["p95_ms"])
    (path,) = (student_folder / "evidence" / "exports").iterdir()
    assert path.read_text() == report.to_json() + "\n"
    path.write_text('{"record": {"backend": "onnx"}}')
    with pytest.raises(ValueError, match=r"onnx.json holds what this version does not write.*export again"):
        read_exports(student_folder)
