"""Budgets: what meets them, and how they are written."""

import math
from types import SimpleNamespace

import pytest

from kdnas_hf import SearchArguments
from kdnas_hf.export import parse_latency
from kdnas_hf.export.budgets import UNLIMITED, Budget, costs_of
from kdnas_hf.latency import Latency
from kdnas_hf.search.trial import Trial
from kdnas_hf.students import Architecture

LIMITS = ("latency_ms", "parameters", "encoder_parameters", "size_mb", "memory_mb", "flops")


def trial(latency_ms=None, **costs):
    """A trial; its teacher takes 40 ms."""
    latency = None if latency_ms is None else Latency(latency_ms, 0.5, 40.0)
    return Trial(0, 0, Architecture(1, 2, 8, 16), latency=latency, costs=costs)


def test_a_budget_limits_speed_up_latency_or_both():
    fast, slow = trial(4.0), trial(20.0)
    for budget in (Budget(7), Budget(latency_ms=5), Budget(7, 5)):
        assert budget.met_by(fast)
        assert not budget.met_by(slow)
    assert Budget(2, 20).met_by(slow)  # on the limit
    assert Budget(2, 5).excess(costs_of(slow)) == {"speedup": 0.0, "latency_ms": 15.0}
    assert UNLIMITED.met_by(slow)
    assert UNLIMITED.excess(costs_of(slow)) == {}
    assert not UNLIMITED.is_limit


@pytest.mark.parametrize("name", LIMITS)
def test_every_other_cost_is_limited_from_above(name):
    budget = Budget(**{name: 100})
    assert budget.is_limit
    assert budget.limits == {name: 100}
    assert budget.met_by({name: 100.0})
    assert not budget.met_by({name: 100.5})
    assert budget.excess({name: 100.5, "other": 1e9}) == {name: 0.5}


def test_costs_that_are_not_known_miss_no_limit():
    budget = Budget(7, parameters=1000, memory_mb=50)
    assert costs_of(trial(parameters=2000)) == {"parameters": 2000}
    assert budget.excess(costs_of(trial(parameters=2000))) == {"parameters": 1000}
    assert budget.met_by(trial(parameters=1000))
    assert not budget.met_by(trial(20.0, parameters=1000))
    assert not budget.met_by(trial(4.0, parameters=1000, memory_mb=60.0))


def test_a_student_meets_a_budget_as_a_trial_does():
    student = SimpleNamespace(latency=Latency(10.0, 0.5, 40.0), costs={"size_mb": 20.0})
    assert costs_of(student) == {"latency_ms": 10.0, "speedup": 4.0, "size_mb": 20.0}
    assert Budget(4, size_mb=20).met_by(student)
    assert not Budget(4, size_mb=19).met_by(student)


def test_a_budget_in_words_and_in_a_name():
    assert str(Budget(7)) == "at least 7x faster than the teacher"
    assert str(Budget(7, 5)) == "at least 7x faster than the teacher and at most 5 ms"
    assert str(Budget(parameters=21_300_000, flops=2e9)) == "at most 21.3M parameters and at most 2 GFLOP"
    assert str(UNLIMITED) == ""
    slugs = {"7x": Budget(7), "2.5ms": Budget(latency_ms=2.5), "7x-5ms-100MB": Budget(7, 5, size_mb=100)}
    assert {budget.slug: budget for budget in slugs.values()} == slugs
    everything = Budget(7, *([1e6] * 6)).slug.split("-")
    assert len(set(everything)) == 7  # no two limits are written alike


def test_the_stricter_budget_meets_both():
    assert Budget(7, 10).stricter(Budget(4, 5)) == Budget(7, 5)
    assert UNLIMITED.stricter(Budget(4)) == Budget(4)
    assert Budget(size_mb=50, flops=2).stricter(Budget(size_mb=80, memory_mb=9)) == Budget(
        size_mb=50, flops=2, memory_mb=9
    )


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_impossible_limits_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value:g} must be positive.$"):
        Budget(**{name: value})


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_impossible_speed_ups_are_refused(value):
    with pytest.raises(ValueError, match=f"^speedup={value:g} must be a number that is not negative.$"):
        Budget(value)


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
        ({"latency_budgets": ["5ms", "fast"]}, "latency_budgets='fast' is not a latency"),
        ({"speedup_budgets": [0.0]}, "speedup_budgets"),
    ],
)
def test_impossible_lists_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SearchArguments(**values)


def test_several_budgets_include_the_hard_constraint():
    args = SearchArguments(speedup=4, speedup_budgets=[10, 5], latency_budgets=["5ms", "20ms"])
    assert args.budgets == [
        Budget(5),
        Budget(10),
        Budget(4, 20),
        Budget(4, 5),
    ]
    assert SearchArguments(latency_budget="5ms").budget == Budget(0, 5)
    assert SearchArguments().budgets is None
