"""Intervals over rows: constructed cases whose answer is known."""

import numpy as np
import pytest

from kdnas_hf.evaluation.embeddings import KINDS, Rows
from kdnas_hf.evaluation.embeddings.bootstrap import Resampled

BITEXT = KINDS["bitext"]


def of(right, seed=0, resamples=400):
    rows = Rows({"source": ["s"] * len(right), "target": ["t"] * len(right)}, "here")
    contributions = np.stack([right, right], axis=1).astype(float)
    return Resampled.of(BITEXT, rows, contributions, resamples, seed)


def test_an_interval_is_that_of_the_binomial():
    right = np.arange(400) % 2
    estimate = of(right).estimate()
    half = 1.96 * np.sqrt(0.25 / 400)
    assert estimate.value == 0.5
    assert estimate.low == pytest.approx(0.5 - half, abs=0.012)
    assert estimate.high == pytest.approx(0.5 + half, abs=0.012)
    assert of(right).estimate() == estimate  # the same seed, the same interval
    assert of(right, seed=1).estimate() != estimate


def test_a_share_is_paired_so_an_encoder_that_errs_where_its_teacher_does_keeps_exactly_all():
    teacher = of(np.arange(100) < 60)
    same = of(np.arange(100) < 60).share_of(teacher)
    assert (same.value, same.low, same.high) == (1, 1, 1)
    # as good on average, but right on other rows: the share is uncertain
    other = of(np.arange(100) >= 40).share_of(teacher)
    assert other.value == 1
    assert other.low < 0.8 < 1.2 < other.high


def test_the_share_of_a_known_part_lies_within_its_interval():
    teacher = of(np.arange(200) < 160)
    student = of(np.arange(200) < 120)  # right on three quarters of what its teacher is right on
    share = student.share_of(teacher)
    assert share.value == pytest.approx(0.75)
    assert share.low < 0.75 < share.high
    half = 1.96 * np.sqrt(0.75 * 0.25 / 160)  # a share of the teacher's 160 rows
    assert share.high - share.low == pytest.approx(2 * half, rel=0.15)
    unpaired = student.estimate()
    assert share.high - share.low < (unpaired.high - unpaired.low) / 0.8


def test_there_is_no_share_of_nothing():
    assert of(np.ones(10)).share_of(of(np.zeros(10))) is None


def test_an_average_over_translated_rows_is_no_surer_than_one_language():
    right = np.arange(100) % 2
    one = of(right)
    both = Resampled.mean([one, of(right)])
    assert both.estimate() == one.estimate()
    # rows that have nothing to do with each other: surer
    mixed = Resampled.mean([one, of(np.roll(np.arange(100) < 50, 0))]).estimate()
    assert mixed.high - mixed.low < 0.85 * (one.estimate().high - one.estimate().low)
