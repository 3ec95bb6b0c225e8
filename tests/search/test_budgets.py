"""Latency budgets: what meets them, and how they are written."""

import json
import math

import pytest
from records import record
from tiny_search import tiny_search

from kdnas_hf import SearchArguments
from kdnas_hf.search import LatencyBudget, parse_latency
from kdnas_hf.search.budgets import UNLIMITED


def test_a_budget_limits_speed_up_latency_or_both():
    fast, slow = record(0, latency=4.0), record(1, latency=20.0)  # of a teacher of 40 ms
    for budget in (LatencyBudget(7), LatencyBudget(latency_ms=5), LatencyBudget(7, 5)):
        assert budget.met_by(fast)
        assert not budget.met_by(slow)
    assert LatencyBudget(2, 20).met_by(slow)  # on the limit
    assert LatencyBudget(2, 5).excess(slow) == {"speedup": 0.0, "latency_ms": 15.0}
    assert UNLIMITED.met_by(slow)
    assert UNLIMITED.excess(slow) == {}
    assert not UNLIMITED.is_limit


def test_a_budget_in_words():
    assert str(LatencyBudget(7)) == "at least 7x faster than the teacher"
    assert str(LatencyBudget(7, 5)) == "at least 7x faster than the teacher and at most 5 ms"
    assert (LatencyBudget(7).slug, LatencyBudget(latency_ms=2.5).slug, LatencyBudget(7, 5).slug) == (
        "7x",
        "2.5ms",
        "7x-5ms",
    )


def test_the_stricter_budget_meets_both():
    assert LatencyBudget(7, 10).stricter(LatencyBudget(4, 5)) == LatencyBudget(7, 5)
    assert UNLIMITED.stricter(LatencyBudget(4)) == LatencyBudget(4)


@pytest.mark.parametrize(
    ("text", "milliseconds"), [("5ms", 5), ("5 ms", 5), ("5", 5), ("0.005s", 5), (".5ms", 0.5), ("800us", 0.8)]
)
def test_latencies_as_they_are_written(text, milliseconds):
    assert parse_latency(text) == pytest.approx(milliseconds)


@pytest.mark.parametrize("text", ["", "ms", "5 minutes", "-5ms", "0ms", "5ms10"])
def test_what_is_no_latency_is_refused(text):
    with pytest.raises(ValueError, match="latency_budget=.* write it like 5ms"):
        SearchArguments(latency_budget=text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"latency_budgets": []}, r"latency_budgets=\[\] must be one or several"),
        ({"latency_budgets": ["5ms", "fast"]}, "latency_budgets='fast' is no latency"),
        ({"speedup_budgets": [0.0]}, "speedup_budgets"),
    ],
)
def test_impossible_lists_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SearchArguments(**values)


def test_several_budgets_include_the_hard_constraint():
    args = SearchArguments(speedup=4, speedup_budgets=[10, 2], latency_budgets=["5ms", "20ms"])
    assert args.budgets == [
        LatencyBudget(4),  # 2, but for the constraint
        LatencyBudget(10),
        LatencyBudget(4, 20),
        LatencyBudget(4, 5),
    ]
    assert SearchArguments(latency_budget="5ms").budget == LatencyBudget(0, 5)
    assert SearchArguments().budgets is None


@pytest.mark.long
def test_a_latency_budget_is_never_missed_and_recommendations_are_for_programs(tmp_path):
    unlimited = tiny_search(tmp_path / "unlimited", num_episodes=2, num_train_epochs=1).run()
    best = unlimited.students[0]
    limit = best.latency_ms * 0.99  # what would win misses it
    result = tiny_search(
        tmp_path / "limited", num_episodes=2, num_train_epochs=1, latency_budget=f"{limit:.6f}ms"
    ).run()
    assert any(record.latency_ms > limit for record in result.records)
    assert result.students[0].latency_ms <= limit
    told = json.loads((result.folder / "recommendations.json").read_text())
    assert "the highest reward among those at most" in told["chosen_by"]
    for one in told["recommendations"]:
        assert one["latency_ms_at_most"] == pytest.approx(limit, rel=1e-5)
        if one["trial"] is not None:
            measured = next(record for record in result.records if record.number == one["trial"])
            assert measured.latency_ms <= limit
            assert one["r2"] == measured.r2
            assert one["architecture"] == measured.architecture.as_dict()
    distilled = [one["student"] for one in told["recommendations"] if one["student"] is not None]
    assert set(distilled) <= {"student"}
    report = (result.folder / "report.md").read_text()
    assert f"at most {limit:g} ms" in report
    assert "(too slow)" in report
    assert math.isfinite(result.students[0].reward)
