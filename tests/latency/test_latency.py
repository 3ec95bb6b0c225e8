"""Latency: what is measured and how it is reported. Nothing here depends on how fast the machine is."""

import json
import time

import pytest
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from kdnas_hf.latency import DeviceFingerprint, LatencyBenchmark, LatencyMeasurement, LatencyReport, stand_in
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
    benchmark = LatencyBenchmark(batch_size=2, sequence_length=9, threads=1, repeats=3, warmup=1)
    benchmark.measure({"teacher": Recorder("teacher", calls), "student": Recorder("student", calls)})
    assert [name for name, *_ in calls] == ["teacher", "student"] * 4
    assert {shape for _, shape, *_ in calls} == {(2, 9)}
    assert {threads for *_, threads, _ in calls} == {1}
    assert all(full for *_, full in calls)
    assert torch.get_num_threads() == before


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
    assert "| student | 8.00 | 0.50 | 5.00x |" in text
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


@pytest.mark.parametrize("field", ["batch_size", "sequence_length", "threads", "repeats"])
def test_values_that_are_not_positive_are_refused(field):
    with pytest.raises(ValueError, match=f"{field}=0 must be at least 1"):
        LatencyBenchmark(**{field: 0})
