"""The front and the recommendations."""

from records import record

from kdnas_hf.search import Architecture, LatencyBudget, pareto_front, recommend

A, B, C, D = (Architecture(layers, 2, 8, 16, "gelu") for layers in (1, 2, 3, 4))


def test_front_holds_what_no_other_beats_in_both():
    records = [
        record(0, A, r2=0.1, latency=4),
        record(1, B, r2=0.3, latency=8),
        record(2, C, r2=0.2, latency=9),  # slower and worse than the one before
        record(3, D, r2=0.5, latency=20),
        record(4, D, state="failed", latency=1),
    ]
    assert [r.number for r in pareto_front(records)] == [0, 1, 3]


def test_recommendation_is_the_best_that_meets_the_budget():
    records = [record(0, A, r2=0.1, latency=4), record(1, B, r2=0.3, latency=8), record(2, C, r2=0.5, latency=20)]
    assert [recommend(records, LatencyBudget(speedup)).number for speedup in (2, 4, 7, 10)] == [2, 1, 0, 0]
    assert recommend(records, LatencyBudget(11)) is None
    assert recommend(records, LatencyBudget(2).stricter(LatencyBudget(4))).number == 1
