"""Exported models load in one line and are called like the models that they were made of."""

import sys

import numpy as np
import pytest
import torch
from tiny_students import make_student

from kdnas_hf import ExportedModel
from kdnas_hf.export import BACKENDS, compare_outputs, make_artefact, make_runner, peak_memory_mb
from kdnas_hf.latency import LatencyBenchmark, Runner

DEPLOYED = [name for name, backend in BACKENDS.items() if backend.file is not None]


@pytest.mark.parametrize("backend", DEPLOYED)
def test_every_backend_loads_back_from_the_students_directory(backend, student_folder, batches, tokenizer, graph_of):
    if backend.startswith("openvino"):
        pytest.importorskip("nncf")
    model = make_student()
    make_artefact(model, student_folder, backend, batches, graph=graph_of())
    exported = ExportedModel.from_pretrained(student_folder, backend=backend, threads=1)
    check = compare_outputs(exported, model, batches)
    precision = BACKENDS[backend].precision
    assert check.failures(BACKENDS[backend]) == []
    assert check.max_difference < {"float32": 1e-4, "bfloat16": 1.0, "int8": 2.0}[precision]
    outputs = exported(**tokenizer(["bap", "bap das"], padding=True, return_tensors="pt"))
    assert isinstance(outputs.last_hidden_state, torch.Tensor)
    assert outputs.last_hidden_state.shape[0] == 2


@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [("sequence", "logits", (1, 2)), ("token", "logits", (1, 3, 2)), ("question", "start_logits", (1, 3))],
)
def test_heads_give_what_they_give_in_pytorch(kind, name, shape, tmp_path, graph_of):
    model = make_student(kind)
    path = make_artefact(model, tmp_path, "onnx", graph=graph_of(kind))
    outputs = ExportedModel(path, "onnx", model.config)(input_ids=[[5, 6, 7]])
    assert getattr(outputs, name).shape == shape
    with torch.inference_mode():
        expected = model(torch.tensor([[5, 6, 7]]))[name].numpy()
    np.testing.assert_allclose(outputs[name], expected, atol=1e-5)


def test_results_of_one_call_outlive_the_next(tmp_path, graph_of):
    pytest.importorskip("openvino")
    model = make_student()
    exported = ExportedModel(make_artefact(model, tmp_path, "openvino", graph=graph_of()), "openvino", model.config)
    first = exported(input_ids=[[5, 6, 7]]).last_hidden_state
    before = first.copy()
    exported(input_ids=[[9, 9, 9]])
    np.testing.assert_array_equal(first, before)


def test_what_is_not_read_is_refused(graph_of):
    exported = ExportedModel(graph_of(), "onnx", make_student().config)
    exported(input_ids=[[5, 6]], token_type_ids=[[0, 0]])
    with pytest.raises(ValueError, match="token_type_ids: exported models read none"):
        exported(input_ids=[[5, 6]], token_type_ids=[[0, 1]])
    with pytest.raises(TypeError, match="not labels"):
        exported(input_ids=[[5, 6]], labels=[1])


def test_a_missing_artefact_says_how_to_make_it(student_folder):
    with pytest.raises(FileNotFoundError, match=r"openvino_model.xml does not exist; make it: python recipes/export"):
        ExportedModel.from_pretrained(student_folder, backend="openvino")


def test_unknown_backends_and_those_without_a_file_are_refused(student_folder):
    with pytest.raises(ValueError, match="backend='tensorrt' is unknown; choose from torch, "):
        ExportedModel.from_pretrained(student_folder, backend="tensorrt")
    with pytest.raises(ValueError, match="backend='torch' has no exported file; load the student with AutoModel"):
        ExportedModel.from_pretrained(student_folder, backend="torch")


@pytest.mark.parametrize(
    ("backend", "package", "extra"), [("onnx", "onnxruntime", "onnx"), ("openvino", "nncf", "openvino")]
)
def test_a_missing_runtime_names_the_extra(backend, package, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"needs {package}, which is not installed: pip install 'kdnas-hf\[{extra}\]'"
    with pytest.raises(ImportError, match=message):
        make_artefact(make_student(), tmp_path, backend)


@pytest.mark.parametrize("backend", ["torch", "torch-bf16", "openvino-int8"])
def test_runners_of_every_kind_are_measured_side_by_side(backend, tmp_path, graph_of):
    if backend.startswith("openvino"):
        pytest.importorskip("nncf")
    runner = make_runner(make_student(), backend, tmp_path, threads=1, graph=graph_of())
    assert isinstance(runner, Runner)
    benchmark = LatencyBenchmark(sequence_length=8, repeats=3, max_spread=None)
    report = benchmark.measure({"teacher": make_student(), "student": runner})
    assert report.measurements["student"].backend == BACKENDS[backend].description
    assert report.measurements["student"].median_ms > 0


@pytest.mark.long
def test_memory_is_measured_in_a_process_of_its_own(student_folder, graph_of):
    make_artefact(make_student(), student_folder, "onnx", graph=graph_of())
    assert 0 <= peak_memory_mb(student_folder, "onnx", sequence_length=16) < 500
    with pytest.raises(RuntimeError, match="memory of .*openvino_model.xml does not exist"):
        peak_memory_mb(student_folder, "openvino")
