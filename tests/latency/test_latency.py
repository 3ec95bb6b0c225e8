"""Latency: what is measured and how it is reported. Nothing here depends on how fast the machine is."""

import itertools
import json
import time

import numpy as np
import pytest
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from kdnas_hf.latency import (
    DeviceFingerprint,
    LatencyBenchmark,
    LatencyMeasurement,
    LatencyReport,
    NoisyMeasurementError,
    TorchRunner,
    stand_in,
)
from tiny_teacher import make_teacher_model


class Recorder(torch.nn.Module):
    """Notes its calls, and sleeps."""

    def __init__(self, name, calls, seconds=0.0):
        super().__init__()
        self.name, self.calls, self.seconds = name, calls, seconds
        self.config = XLMRobertaConfig(vocab_size=50)

    def forward(self, input_ids, attention_mask):
        self.calls.append((self.name, tuple(input_ids.shape), torch.get_num_threads(), bool(attention_mask.all())))
        time.sleep(self.seconds)


def test_models_are_called_in_turn_with_the_shape_and_threads_asked_for():
    calls = []
    before = torch.get_num_threads()
    benchmark = LatencyBenchmark(
        batch_size=2, sequence_length=9, threads=1, repeats=3, warmup=1, calls_per_turn=2, attempts=1
    )
    benchmark.measure({"teacher": Recorder("teacher", calls), "student": Recorder("student", calls)})
    # a round to warm up; then turns of a call that is not counted and two, then one, that are
    turns = ["teacher", "student", *["teacher"] * 3, *["student"] * 3, *["teacher"] * 2, *["student"] * 2]
    assert [name for name, *_ in calls] == turns
    assert {shape for _, shape, *_ in calls} == {(2, 9)}
    assert {threads for *_, threads, _ in calls} == {1}
    assert all(full for *_, full in calls)
    assert torch.get_num_threads() == before


class Scripted:
    """A runner whose calls take what a script says."""

    config = XLMRobertaConfig(vocab_size=50)
    device = "cpu"
    libraries = {"Scripted": "1.0"}

    def __init__(self, seconds, threads=None, backend="scripted, int8"):
        self.seconds = itertools.cycle(seconds)
        self.threads = threads
        self.backend = backend
        self.calls = 0

    def prepare(self, input_ids, attention_mask):
        def call():
            self.calls += 1
            time.sleep(next(self.seconds))

        return call


def test_a_noisy_measurement_is_repeated_and_then_flagged(caplog):
    runner = Scripted([0.001, 0.004])  # every other call is four times as slow
    report = LatencyBenchmark(repeats=8, warmup=0, calls_per_turn=8, attempts=2).measure({"teacher": runner})
    assert runner.calls == 2 * 9
    assert report.noisy == ["teacher"]
    assert "**Noisy**: the interquartile range exceeds 25% of the median" in report.to_markdown()
    assert json.loads(report.to_json())["noisy"] == ["teacher"]


def test_a_noisy_measurement_can_be_refused():
    benchmark = LatencyBenchmark(repeats=8, warmup=0, calls_per_turn=8, attempts=2, refuse_noise=True)
    with pytest.raises(NoisyMeasurementError, match="measured 2 times.*measure again"):
        benchmark.measure({"teacher": Scripted([0.001, 0.004])})


def test_a_measurement_that_calms_down_counts():
    runner = Scripted([0.001, 0.004] * 5 + [0.01] * 100)
    report = LatencyBenchmark(repeats=9, warmup=0, calls_per_turn=9, attempts=3).measure({"teacher": runner})
    assert report.noisy == []
    assert report.measurements["teacher"].median_ms >= 10
    assert runner.calls == 2 * 10


def test_a_runner_built_for_other_threads_is_refused():
    with pytest.raises(ValueError, match=r"threads=1: student was loaded for 2 thread\(s\)"):
        LatencyBenchmark(threads=1, repeats=1).measure({"student": Scripted([0.0], threads=2)})


def test_report_names_the_backend_of_each_model_and_the_libraries_that_ran_them():
    benchmark = LatencyBenchmark(sequence_length=8, batch_size=2, repeats=2, max_spread=None)
    report = benchmark.measure({"teacher": make_teacher_model(layers=1), "student": Scripted([0.001], threads=1)})
    assert report.backends == ["PyTorch eager, float32", "scripted, int8"]
    assert dict(report.fingerprint.libraries) == {"Scripted": "1.0"}
    text = report.to_markdown()
    assert "| student | scripted, int8 |" in text
    assert "Scripted 1.0" in report.describe_method()
    assert report.tokens_per_second("student") == pytest.approx(2 * 8 * 1000 / report.measurements["student"].median_ms)
    assert report.measurements["student"].p95_ms >= report.measurements["student"].median_ms


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_torch_runner_of_another_precision_leaves_the_model(precision):
    model = make_teacher_model(layers=1)
    runner = TorchRunner(model, precision)
    assert runner.backend == f"PyTorch eager, {precision}"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert next(runner.model.parameters()).dtype == getattr(torch, precision)


def test_a_torch_runner_compiles():
    model = make_teacher_model(layers=1)
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    original, torch.compile = torch.compile, lambda m, **_: original(m, backend=backend)
    try:
        runner = TorchRunner(model, compiled=True)
        ids = np.full((1, 4), 5, dtype=np.int64)
        runner.prepare(ids, np.ones_like(ids))()
    finally:
        torch.compile = original
    assert compiled
    assert runner.backend == "PyTorch compiled, float32"


def test_impossible_precisions_and_devices_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="precision='int4' is unknown; choose from float32"):
        TorchRunner(make_teacher_model(layers=1), "int4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no CUDA device; choose 'cpu'"):
        TorchRunner(make_teacher_model(layers=1), device="cuda")


def test_a_sequence_that_a_model_cannot_read_is_refused():
    with pytest.raises(
        ValueError, match=r"sequence_length=128 is more than a model reads \(max_position_embeddings=66"
    ):
        LatencyBenchmark(sequence_length=128, repeats=1).measure({"teacher": make_teacher_model(layers=1)})


def test_slower_model_is_measured_as_slower():
    calls = []
    report = LatencyBenchmark(repeats=3).measure(
        {"teacher": Recorder("teacher", calls, 0.02), "student": Recorder("student", calls, 0.001)}
    )
    assert report.measurements["teacher"].median_ms >= 20
    assert report.speedup("student") > 2


def test_median_and_interquartile_range():
    measured = LatencyMeasurement.from_seconds([0.001, 0.002, 0.003, 0.004, 0.1])
    assert measured.median_ms == pytest.approx(3)
    assert measured.iqr_ms == pytest.approx(2)
    assert measured.samples == 5


def test_report_says_how_it_was_measured():
    report = LatencyReport(
        {"teacher": LatencyMeasurement(40, 1, 15), "student": LatencyMeasurement(8, 0.5, 15)},
        1, 128, 2, DeviceFingerprint.of("cpu"),
    )  # fmt: skip
    text = report.to_markdown()
    assert "| student | 8.00 | 0.50 |  | 16,000 | 5.00x |" in text
    assert "1 x 128 tokens, 2 thread(s)" in text
    assert torch.__version__ in text
    assert json.loads(report.to_json())["measurements"]["student"]["median_ms"] == 8


def test_stand_in_has_the_shape_but_not_the_vocabulary():
    config = XLMRobertaConfig(
        vocab_size=5000, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    model = stand_in(XLMRobertaModel, config)
    assert model.get_input_embeddings().weight.shape == (1024, 32)
    assert config.vocab_size == 5000
    assert len(model.encoder.layer) == 2
    assert model.pooler is None
    assert not model.training


def test_stand_in_keeps_a_vocabulary_that_special_tokens_need():
    config = XLMRobertaConfig(
        vocab_size=3000, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        pad_token_id=2999, max_position_embeddings=3050,
    )  # fmt: skip
    assert stand_in(XLMRobertaModel, config).get_input_embeddings().weight.shape == (3000, 16)


def test_stand_in_leaves_the_global_random_state():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    stand_in(XLMRobertaModel, make_teacher_model().config)
    torch.testing.assert_close(torch.rand(2), expected)


@pytest.mark.parametrize("field", ["batch_size", "sequence_length", "threads", "repeats", "calls_per_turn", "attempts"])
def test_values_that_are_not_positive_are_refused(field):
    with pytest.raises(ValueError, match=f"{field}=0 must be at least 1"):
        LatencyBenchmark(**{field: 0})
