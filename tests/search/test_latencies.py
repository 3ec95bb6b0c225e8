"""Latency of architectures as they are deployed: measured once for an architecture and a machine."""

import pytest
from tiny_search import SPACE, tiny_search

from kdnas_hf import Architecture, LatencyBenchmark, SearchArguments, SearchSpace, Teacher, student_config
from kdnas_hf.latency import TorchRunner
from kdnas_hf.search import latencies as latencies_module
from kdnas_hf.search.latencies import ArchitectureLatencies
from tiny_teacher import make_teacher_model

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

ONE = Architecture(1, 2, 16, 16, "gelu")
OTHER = Architecture(2, 2, 16, 16, "gelu")


@pytest.fixture
def teacher(tokenizer):
    return Teacher(make_teacher_model(layers=2), tokenizer, name="tiny teacher")


@pytest.fixture
def exported(monkeypatch):
    """The models that would be exported, by name of their folder; they stay in PyTorch, which takes no time."""
    made = []

    def spy(model, backend, folder, threads):
        made.append((folder.name, model.config.num_hidden_layers))
        return TorchRunner(model)

    monkeypatch.setattr(latencies_module, "make_runner", spy)
    return made


def measure(teacher, folder, architectures, backend="onnx-int8", **benchmark):
    settings = {"sequence_length": 8, "repeats": 3, "max_spread": None} | benchmark
    return ArchitectureLatencies(
        teacher, lambda one: student_config(teacher, one), LatencyBenchmark(**settings), backend, folder
    ).measure(architectures)


def test_what_was_measured_is_kept_for_later_searches(teacher, tmp_path, exported):
    first = measure(teacher, tmp_path, {0: ONE})
    assert exported == [("teacher", 2), ("0", 1)]
    assert first[0].median_ms > 0
    assert first[0].teacher_ms > 0
    second = measure(teacher, tmp_path, {7: ONE, 8: OTHER})
    assert exported[2:] == [("teacher", 2), ("8", 2)]
    assert second[7] == first[0]
    assert measure(teacher, tmp_path, {1: OTHER, 2: ONE}) == {1: second[8], 2: first[0]}
    assert len(exported) == 4


def test_other_inputs_and_backends_are_measured_anew(teacher, tmp_path, exported):
    measure(teacher, tmp_path, {0: ONE})
    measure(teacher, tmp_path, {0: ONE}, sequence_length=16)
    measure(teacher, tmp_path, {0: ONE}, backend="onnx")
    assert len(exported) == 6


def test_noisy_latencies_are_not_kept(teacher, tmp_path, exported):
    measure(teacher, tmp_path, {0: ONE}, max_spread=1e-9, attempts=1)
    measure(teacher, tmp_path, {0: ONE})
    assert len(exported) == 4


def test_latency_in_pytorch_is_measured_side_by_side_each_time(teacher, tmp_path, exported):
    found = measure(teacher, tmp_path, {0: ONE, 1: OTHER}, backend="torch")
    assert found[0].teacher_ms == found[1].teacher_ms
    assert exported == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_search_takes_the_latency_of_the_exported_students(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNAS_HF_CACHE", str(tmp_path / "cache"))
    search = tiny_search(
        tmp_path / "run", num_episodes=1, candidates_per_episode=2, latency_backend="onnx", mini_kd_epochs=1,
        num_train_epochs=1,
        space=SearchSpace.from_dict(SPACE | {"num_hidden_layers": [1], "hidden_size": [8], "intermediate_size": [16]}),
    )  # fmt: skip
    search.latencies.benchmark = LatencyBenchmark(sequence_length=8, repeats=3, max_spread=None)
    result = search.run()
    assert "ONNX Runtime, float32" in result.latency_method
    kept = (tmp_path / "cache" / "latencies.jsonl").read_text()
    assert all(str(record.latency_ms) in kept for record in result.records)
    assert "ONNX Runtime, float32" in (tmp_path / "run" / "report.md").read_text()


def test_unknown_backends_are_refused():
    with pytest.raises(ValueError, match="latency_backend='tflite' is unknown; choose from torch, "):
        SearchArguments(latency_backend="tflite")
