"""Latency: what is measured and how it is reported. Nothing here depends on how fast the machine is."""

import itertools
import json
import time
from types import SimpleNamespace

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
    describe_lengths,
    parse_lengths,
    shares_of,
    stand_in,
)
from kdnas_hf.latency import benchmark as benchmark_module
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
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"device='cuda': torch sees no CUDA device.*'cpu'"):
        TorchRunner(make_teacher_model(layers=1), device="cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"device='cuda:2': torch sees 2 CUDA device"):
        LatencyBenchmark(device="cuda:2")
    for device in ("tpu", "cuda:", "cuda:x", "gpu:0", ""):
        with pytest.raises(ValueError, match=f"device='{device}' is unknown; choose cpu, cuda"):
            LatencyBenchmark(device=device)
    assert LatencyBenchmark(device="cuda:1").device == "cuda:1"


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


class MillisecondPerToken:
    """A runner on a clock of its own: calls take a millisecond for each token. It notes which lengths it read."""

    config = XLMRobertaConfig(vocab_size=50)
    libraries = {}
    threads = None
    backend = "scripted"

    def __init__(self, monkeypatch, device="cpu"):
        self.device = device
        self.calls = []
        self.now = 0.0
        monkeypatch.setattr(benchmark_module, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def prepare(self, input_ids, attention_mask):
        tokens = input_ids.shape[1]

        def call():
            self.calls.append(tokens)
            self.now += tokens / 1000

        return call


def test_the_latency_of_several_lengths_is_the_weighted_mean_of_their_medians(monkeypatch):
    runner = MillisecondPerToken(monkeypatch)
    benchmark = LatencyBenchmark(
        sequence_length={4: 3, 12: 1}, batch_size=2, repeats=4, warmup=1, calls_per_turn=3, max_spread=None
    )
    report = benchmark.measure({"student": runner})
    # a round to warm up; a turn of each length with a call that is not counted, and the rest of four
    assert runner.calls == [4, 12, *[4] * 4, *[12] * 4, *[4] * 2, *[12] * 2]
    measured = report.measurements["student"]
    assert measured.samples == 4
    assert measured.median_ms == pytest.approx(0.75 * 4 + 0.25 * 12)  # all calls together have a median of 8
    assert report.tokens_per_second("student") == pytest.approx(2 * 1000)
    assert "2 x 4 (75%) / 12 (25%) tokens, mean of the medians weighted by these shares" in report.describe_method()
    assert report.describe_method().startswith("scripted, 2 x 4 (75%)")
    assert "2 x 4 (75%) / 12 (25%) tokens" in benchmark.describe_method()
    assert json.loads(report.to_json())["sequence_length"] == {"4": 3, "12": 1}


def test_quantiles_of_several_lengths_are_averaged_by_their_shares():
    short, long = [0.001, 0.002, 0.003, 0.004, 0.1], [0.01, 0.02, 0.03, 0.04, 1.0]
    mixed = LatencyMeasurement.from_seconds([short, long], shares=[0.25, 0.75])
    alone = [LatencyMeasurement.from_seconds(one) for one in (short, long)]
    for name in ("median_ms", "iqr_ms", "p95_ms"):
        expected = 0.25 * getattr(alone[0], name) + 0.75 * getattr(alone[1], name)
        assert getattr(mixed, name) == pytest.approx(expected)


def test_in_throughput_calls_do_not_wait_for_each_other(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(device))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    runner = MillisecondPerToken(monkeypatch, "cuda:0")
    how = {"sequence_length": 5, "repeats": 2, "warmup": 0, "calls_per_turn": 2, "max_spread": None, "device": "cuda:0"}
    waiting = LatencyBenchmark(**how).measure({"student": runner})
    assert (len(runner.calls), len(events)) == (3, 3)  # one is not counted
    queued = LatencyBenchmark(**how, throughput=True).measure({"student": runner})
    assert (len(runner.calls), len(events)) == (3 + 6, 3 + 3)
    assert set(events) == {"cuda:0"}
    for report in (waiting, queued):  # the time of one call
        assert report.measurements["student"].median_ms == pytest.approx(5)
    assert "throughput of calls that do not wait for each other" in queued.describe_method()
    assert "throughput" not in waiting.describe_method()
    assert "on a card" in queued.describe_method()


def test_lengths_as_they_are_written():
    assert parse_lengths(["128"]) == {128: 1.0}
    assert parse_lengths(["16:3", "128", "64:0.5"]) == {16: 3.0, 128: 1.0, 64: 0.5}
    assert shares_of({16: 3, 128: 1}) == {16: 0.75, 128: 0.25}
    assert shares_of(64) == {64: 1.0}
    assert (describe_lengths(64), describe_lengths({16: 3, 128: 1})) == ("64", "16 (75%) / 128 (25%)")
    for text in ("short", "16:x", "1.5", ":3"):
        with pytest.raises(ValueError, match="sequence_length=.*must be lengths like 128, or 16:3 128:1"):
            parse_lengths([text])


@pytest.mark.parametrize("lengths", [{}, {0: 1.0}, {-4: 1.0, 8: 1.0}])
def test_lengths_that_are_not_positive_are_refused(lengths):
    with pytest.raises(ValueError, match="sequence_length=.*must be at least 1"):
        LatencyBenchmark(sequence_length=lengths)


@pytest.mark.parametrize("weight", [0, -1.0, float("inf"), float("nan")])
def test_weights_that_are_not_positive_are_refused(weight):
    with pytest.raises(ValueError, match="sequence_length=.*has a weight that is not positive"):
        LatencyBenchmark(sequence_length={8: 1.0, 16: weight})


@pytest.mark.parametrize("field", ["batch_size", "sequence_length", "threads", "repeats", "calls_per_turn", "attempts"])
def test_values_that_are_not_positive_are_refused(field):
    with pytest.raises(ValueError, match=f"{field}=0 must be at least 1"):
        LatencyBenchmark(**{field: 0})
