"""Latency of architectures as they are deployed: measured once for an architecture and a machine."""

import functools

import numpy as np
import pytest
from tiny_search import SPACE, tiny_search

from kdnas_hf import Architecture, LatencyBenchmark, SearchArguments, SearchSpace, Teacher, student_config
from kdnas_hf.export import architecture_latencies as latencies_module
from kdnas_hf.export import artefact_files, shape_costs
from kdnas_hf.export.architecture_latencies import ArchitectureLatencies
from kdnas_hf.latency import LatencyMeasurement, LatencyReport, TorchRunner
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

    def spy(model, backend, folder, threads, device):
        made.append((folder.name, model.config.num_hidden_layers))
        return TorchRunner(model, device=device)

    monkeypatch.setattr(latencies_module, "make_runner", spy)
    return made


def latencies_of(teacher, folder, backend="onnx-int8", config_of=student_config, **benchmark):
    settings = {"sequence_length": 8, "repeats": 3, "max_spread": None} | benchmark
    config_of = functools.partial(config_of, teacher)
    return ArchitectureLatencies(teacher.model, config_of, LatencyBenchmark(**settings), backend, folder)


def measure(teacher, folder, architectures, repeats=None, **settings):
    return latencies_of(teacher, folder, **settings).measure(architectures, repeats)


def test_what_was_measured_is_kept_for_later_searches(teacher, tmp_path, exported):
    first = measure(teacher, tmp_path, {0: ONE})
    assert exported == [("teacher", 2), ("0", 1)]
    assert first[0].student_ms > 0
    assert first[0].teacher_ms > 0
    second = measure(teacher, tmp_path, {7: ONE, 8: OTHER})
    assert exported[2:] == [("teacher", 2), ("8", 2)]
    assert second[7] == first[0]
    assert measure(teacher, tmp_path, {1: OTHER, 2: ONE}) == {1: second[8], 2: first[0]}
    assert len(exported) == 4


def test_other_inputs_and_backends_are_measured_anew(teacher, tmp_path, exported):
    measure(teacher, tmp_path, {0: ONE})
    for number, other in enumerate(
        [
            {"sequence_length": 16},
            {"sequence_length": {8: 1.0, 16: 1.0}},
            {"sequence_length": {8: 2.0, 16: 1.0}},
            {"batch_size": 2},
            {"throughput": True},
            {"backend": "onnx"},
        ]
    ):
        measure(teacher, tmp_path, {0: ONE}, **other)
        assert len(exported) == 2 * (number + 2)
    measure(teacher, tmp_path, {0: ONE}, sequence_length={16: 2.0, 8: 2.0})  # is an earlier one
    assert len(exported) == 14


@pytest.mark.parametrize(
    "field", ["hidden_act", "vocab_size", "type_vocab_size", "max_position_embeddings", "layer_norm_eps"]
)
def test_teachers_and_students_that_differ_in_anything_are_measured_anew(teacher, tmp_path, exported, field):
    measure(teacher, tmp_path, {0: ONE})
    other = {"hidden_act": "relu", "layer_norm_eps": 1e-3}.get(field, 200)

    def changed(teacher, architecture):
        return type(config := student_config(teacher, architecture)).from_dict(config.to_dict() | {field: other})

    measure(teacher, tmp_path, {0: ONE}, config_of=changed)
    assert len(exported) == 4
    before = teacher.model.config.to_dict()
    teacher.model.config = type(teacher.model.config).from_dict(before | {field: other})
    measure(teacher, tmp_path, {0: ONE})
    assert len(exported) == 6


def test_where_a_model_was_saved_and_what_it_was_copied_from_changes_no_latency(teacher, tmp_path, exported):
    measure(teacher, tmp_path, {0: ONE})
    teacher.model.config._name_or_path = "somewhere/else"

    def copied(teacher, architecture):
        config = student_config(teacher, architecture)
        config.teacher_layers = [2]
        config.transformers_version = "0.0"
        return config

    measure(teacher, tmp_path, {0: ONE}, config_of=copied)
    assert len(exported) == 2


@pytest.mark.parametrize("backend", ["torch", "onnx-int8"])
def test_architectures_that_differ_in_teacher_layers_alone_are_timed_once(teacher, tmp_path, monkeypatch, backend):
    named = iter(range(1, 100))

    def copied(teacher, architecture):
        config = student_config(teacher, architecture)
        config.teacher_layers = [next(named)]
        return config

    timed = []

    def note(self, models):
        timed.append(list(models))
        return LatencyReport({name: LatencyMeasurement(1.0 + len(name), 0.1, 1) for name in models}, 1, 8, 1, None)

    monkeypatch.setattr(LatencyBenchmark, "measure", note)
    monkeypatch.setattr(latencies_module, "make_runner", lambda model, *_: TorchRunner(model))
    found = measure(teacher, tmp_path, {3: ONE, 4: OTHER, 5: ONE}, backend=backend, config_of=copied)
    assert timed == [["teacher", "3", "4"]]
    assert list(found) == [3, 4, 5]
    assert found[5] == found[3]


def test_with_more_calls_all_are_measured_now_and_side_by_side(teacher, tmp_path, exported, monkeypatch):
    measure(teacher, tmp_path, {0: ONE})
    repeats = []
    whole = LatencyBenchmark.measure

    def note(self, models):
        repeats.append(self.repeats)
        return whole(self, models)

    monkeypatch.setattr(LatencyBenchmark, "measure", note)
    again = measure(teacher, tmp_path, {5: ONE, 6: OTHER}, repeats=7)
    assert repeats == [7]
    assert exported[2:] == [("teacher", 2), ("5", 1), ("6", 2)]
    assert again[5].teacher_ms == again[6].teacher_ms
    assert measure(teacher, tmp_path, {0: ONE}) == {0: again[5]}  # the later measurement counts


def test_noisy_latencies_are_not_kept(teacher, tmp_path, exported):
    measure(teacher, tmp_path, {0: ONE}, max_spread=1e-9, attempts=1)
    measure(teacher, tmp_path, {0: ONE})
    assert len(exported) == 4


def test_latency_in_pytorch_is_measured_side_by_side_each_time(teacher, tmp_path, exported):
    found = measure(teacher, tmp_path, {0: ONE, 1: OTHER}, backend="torch")
    assert found[0].teacher_ms == found[1].teacher_ms
    assert exported == []
    assert list(tmp_path.iterdir()) == []


def test_a_backend_of_the_cpu_is_not_timed_on_another_device(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match="device='cuda': onnx-int8 runs on the CPU; choose 'cpu', or a torch backend"):
        latencies_of(teacher, tmp_path, device="cuda")
    assert latencies_of(teacher, tmp_path, backend="torch-fp16", device="cuda").benchmark.device == "cuda"


@pytest.mark.parametrize("backend", ["torch", pytest.param("onnx-int8", marks=pytest.mark.long)])
def test_memory_is_that_of_the_deployed_student_with_its_vocabulary(teacher, tmp_path, monkeypatch, backend):
    asked = []

    def spy(folder, backend, batch_size, sequence_length, threads):
        from transformers import AutoModel

        model = AutoModel.from_pretrained(folder)
        files = [path.name for path in artefact_files(folder, backend)]
        asked.append((model.config.num_hidden_layers, model.config.vocab_size, files, batch_size, sequence_length))
        return 12.5

    monkeypatch.setattr(latencies_module, "peak_memory_mb", spy)
    latencies = latencies_of(teacher, tmp_path, backend=backend, sequence_length={8: 3.0, 32: 1.0}, batch_size=4)
    assert latencies.measure_memory({3: OTHER}) == {3: 12.5}
    files = [] if backend == "torch" else ["model_quantized.onnx"]
    assert asked == [(2, teacher.embeddings.vocab_size, files, 4, 32)]


@pytest.mark.long
def test_a_larger_table_takes_more_memory(teacher, tmp_path):
    def large(teacher, architecture):
        return architecture.to_config(vocab_size=200_000 * architecture.num_hidden_layers)

    found = latencies_of(teacher, tmp_path, backend="torch", config_of=large, batch_size=64).measure_memory(
        {0: ONE, 1: OTHER}
    )
    # tables of 12.8 and 25.6 MB
    assert 8 < found[1] - found[0] < 40


def test_shape_costs_are_those_of_the_students_as_deployed(teacher, tmp_path):
    latencies = latencies_of(teacher, tmp_path, batch_size=2, sequence_length={8: 3.0, 32: 1.0})
    shapes = [ONE, Architecture(3, (1, 2, 4), 8, (16, 24, 8)), Architecture(2, 2, 16, 32, embedding_size=4)]
    together = latencies.shape_costs(shapes)
    for index, shape in enumerate(shapes):
        alone = shape_costs(student_config(teacher, shape), "onnx-int8", 2, {8: 3.0, 32: 1.0})
        assert {name: values[index] for name, values in together.items()} == pytest.approx(alone)
    assert all(isinstance(values, np.ndarray) for values in together.values())


@pytest.mark.long
def test_a_search_takes_the_latency_of_the_exported_students(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNAS_HF_CACHE", str(tmp_path / "cache"))
    search = tiny_search(
        tmp_path / "run", num_episodes=1, candidates_per_episode=2, latency_backend="onnx", mini_kd_epochs=1,
        num_train_epochs=1,
        space=SearchSpace.from_dict(SPACE | {"num_hidden_layers": [1], "hidden_size": [8], "intermediate_size": [16]}),
    )  # fmt: skip
    search.timing.latencies.benchmark = LatencyBenchmark(sequence_length=8, repeats=3, max_spread=None)
    result = search.run()
    assert "ONNX Runtime, float32" in result.latency_method
    kept = (tmp_path / "cache" / "latencies.jsonl").read_text()
    assert all(str(trial.latency.student_ms) in kept for trial in result.trials)
    assert "ONNX Runtime, float32" in (tmp_path / "run" / "report.md").read_text()


def test_unknown_backends_are_refused():
    with pytest.raises(ValueError, match="latency_backend='tflite' is unknown; choose from torch, "):
        SearchArguments(latency_backend="tflite")
