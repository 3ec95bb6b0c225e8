"""The search against rules of thumb: who is compared, how sure the difference is, and what is said of it."""

import math

import numpy as np
import pytest
import scipy.stats
from records import confirmation

from kdnas_hf.search import compare
from kdnas_hf.search.report.comparison import half_width
from kdnas_hf.students import Architecture

SHAPES = [Architecture(layers, 2, width, 16) for layers in (1, 2, 3, 4) for width in (8, 16, 24)]
RULE = "teacher's width, 2 layers"


def by_least_squares(qualities, first=0, second=1):
    """The t interval of the difference of two shapes in the linear model shape + seed, by indicator columns."""
    shapes, seeds = qualities.shape
    rows, values = [], []
    for shape in range(shapes):
        for seed in range(seeds):
            rows.append([*(float(shape == i) for i in range(shapes)), *(float(seed == j) for j in range(1, seeds))])
            values.append(qualities[shape, seed])
    design, values = np.array(rows), np.array(values)
    coefficients = np.linalg.solve(design.T @ design, design.T @ values)
    freedom = len(values) - design.shape[1]
    variance = ((values - design @ coefficients) ** 2).sum() / freedom
    contrast = np.zeros(design.shape[1])
    contrast[first], contrast[second] = 1.0, -1.0
    error = math.sqrt(variance * contrast @ np.linalg.inv(design.T @ design) @ contrast)
    return contrast @ coefficients, error * scipy.stats.t.interval(0.95, freedom)[1]


@pytest.mark.parametrize("size", [(2, 2), (3, 2), (7, 3), (2, 5)])
def test_the_interval_is_that_of_least_squares_in_shape_and_seed(size):
    qualities = np.random.default_rng(1).standard_normal(size) + [[10.0]] * size[0] + np.arange(size[1])
    difference, width = by_least_squares(qualities)
    assert half_width(qualities) == pytest.approx(width)
    assert qualities[0].mean() - qualities[1].mean() == pytest.approx(difference)


@pytest.mark.parametrize(("shapes", "seeds"), [(4, 2), (8, 3)])
def test_the_true_difference_is_in_the_interval_19_times_in_20(shapes, seeds):
    random, covered, runs = np.random.default_rng(0), 0, 4000
    for _ in range(runs):
        truth = 0.02 * random.standard_normal(shapes)
        qualities = (
            truth[:, None] + 0.05 * random.standard_normal(seeds) + 0.004 * random.standard_normal((shapes, seeds))
        )
        difference = qualities[0].mean() - qualities[1].mean()
        covered += abs(difference - (truth[0] - truth[1])) <= half_width(qualities)
    assert covered / runs == pytest.approx(0.95, abs=0.01)  # 0.0034 is the error of the simulation


def test_the_best_of_several_equal_shapes_is_seldom_called_better():
    """Winner and rule are picked after the fact, among shapes that are all worth the same."""
    random, said, uncorrected, runs = np.random.default_rng(0), [], 0, 1500
    for _ in range(runs):
        qualities = 0.3 + 0.05 * random.standard_normal(3) + 0.004 * random.standard_normal((4, 3))
        ordered = sorted(qualities[:3].tolist(), key=sum, reverse=True)
        contestants = [confirmation(shape, "search", q) for shape, q in zip(SHAPES, ordered, strict=False)]
        contestants.append(confirmation(SHAPES[3], RULE, qualities[3]))
        found = compare(contestants)
        said.append(found.verdict)
        uncorrected += found.difference > half_width(np.array([one.qualities for one in contestants]))
    assert said.count("better") / runs < 0.03  # 2.5 % on each side
    assert uncorrected / runs > 0.04  # the plain interval would claim too much
    assert said.count("tie") / runs > 0.94


def contestants(winner=0.36, rule=0.35, rule_ms=10.1, noise=0.001):
    """A winner of 10 ms, a rule, and what makes the noise known; both seeds shift all."""
    return [
        confirmation(SHAPES[0], qualities=(winner - noise, winner + 0.02 + noise), latency=10.0, trial=3),
        confirmation(SHAPES[1], RULE, (rule, rule + 0.02), latency=rule_ms),
        *(confirmation(SHAPES[2 + i], "random", (q, q + 0.02), latency=9.9) for i, q in enumerate((0.30, 0.34, 0.37))),
    ]


def test_a_lead_beyond_the_noise_is_better_one_within_it_a_tie_and_a_loss_is_worse():
    better, tie, worse = (compare(contestants(winner=quality)) for quality in (0.36, 0.351, 0.34))
    assert (better.verdict, tie.verdict, worse.verdict) == ("better", "tie", "worse")
    assert better.difference == pytest.approx(0.01)
    assert better.half_width == pytest.approx(half_width(np.array([one.qualities for one in contestants()])))
    assert better.sentence == (
        f"The best shape of the search explains 0.0100 ± {better.half_width:.4f} more of the teacher (R²) than the "
        f"best rule of thumb, {SHAPES[1]} ({RULE}), at equal latency: better."
    )
    assert tie.sentence.endswith("at equal latency: a tie.")
    assert "0.0100" in worse.sentence
    assert "less of the teacher (R²)" in worse.sentence
    assert worse.sentence.endswith(": worse.")
    assert "has 0.0100" in compare(contestants(), label="quality").sentence
    assert "R²" not in compare(contestants(), label="quality").sentence


def test_one_seed_decides_nothing():
    one_seed = [confirmation(o.architecture, o.origin, o.qualities[:1], o.latency.student_ms) for o in contestants()]
    found = compare(one_seed)
    assert (found.verdict, found.half_width) == ("unknown", None)
    assert found.sentence.endswith("one seed decides nothing.")
    assert "±" not in found.sentence


@pytest.mark.parametrize(("milliseconds", "is_compared"), [(10.31, False), (10.29, True), (9.71, True), (4.0, True)])
def test_a_rule_that_is_slower_than_the_tolerance_is_not_compared(milliseconds, is_compared):
    found = compare(contestants(rule=0.5, rule_ms=milliseconds))
    assert (found.rule is not None) == is_compared
    assert found.verdict == ("worse" if is_compared else "unknown")
    assert ("no rule of thumb beside it that is as fast" in found.sentence) != is_compared
    assert compare(contestants(rule=0.5, rule_ms=milliseconds), tolerance=0.05).rule is not None


def test_a_lead_over_a_faster_rule_alone_proves_nothing():
    found = compare(contestants(rule_ms=5.0))
    assert found.difference > found.half_width
    assert found.verdict == "unknown"
    assert "which takes 50% less time: the lead may be owed to latency." in found.sentence
    # a rule of the same latency, which is worse, makes it fair
    slower = confirmation(SHAPES[6], "another rule", (0.30, 0.32), latency=10.2)
    found = compare([*contestants(rule_ms=5.0), slower])
    assert found.rule.latency.student_ms == 5.0
    assert found.verdict == "better"


def test_random_shapes_are_those_of_the_winners_latency():
    found = compare(contestants())
    assert found.random_median.architecture == SHAPES[3]
    assert found.random_percentile == pytest.approx(2 / 3)
    fast = confirmation(SHAPES[7], "random", (0.1, 0.12), latency=5.0)  # where there are none of its latency
    assert compare([*contestants(), fast]).random_median.architecture == SHAPES[3]
    assert compare([*contestants()[:2], fast]).random_median is fast
    slow = confirmation(SHAPES[7], "random", (0.1, 0.12), latency=20.0)
    assert compare([*contestants()[:2], slow]).random_median is None


def test_a_winner_that_is_a_rule_ties_with_itself():
    winner = contestants()[0]
    itself = confirmation(winner.architecture, RULE, winner.qualities)
    found = compare([winner, itself, *contestants()[1:]])
    assert found.verdict == "tie"
    assert (
        found.sentence
        == f"The best shape of the search is itself the best rule of thumb, {RULE}: a tie, the search gains nothing."
    )
    # its figures are there twice, but count once
    assert found.half_width == pytest.approx(half_width(np.array([one.qualities for one in contestants()]), pairs=2))
    assert compare([winner, itself]).verdict == "tie"
    better = confirmation(SHAPES[8], "a better rule", (0.40, 0.42))
    assert compare([winner, itself, better]).rule is better


def test_who_is_compared_can_be_named_and_what_was_not_confirmed_is_not_compared():
    second = confirmation(SHAPES[9], qualities=(0.33, 0.35))
    assert compare([*contestants(), second]).winner.trial == 3
    assert compare([*contestants(), second], winner=SHAPES[9]).winner is second
    assert compare(contestants(), winner=SHAPES[9]) is None
    assert compare([]) is None
    assert compare([contestants()[0], second]) is None  # nobody to compare with
    assert compare(contestants()[1:]) is None


def test_a_student_that_the_search_did_not_find_is_not_said_to_be_searched():
    drawn = compare(contestants(), winner=SHAPES[4])  # the best of three random shapes
    assert drawn.sentence.startswith("The student, a random shape, explains 0.0200 ± ")
    qualities = np.array([one.qualities for one in contestants()])
    assert drawn.half_width == pytest.approx(half_width(qualities, pairs=3))
    better = confirmation(SHAPES[8], "a better rule", (0.40, 0.42))
    assert (drawn.random_median.architecture, drawn.random_percentile) == (SHAPES[3], 1.0)  # of the others
    itself = compare([*contestants(), better], winner=SHAPES[8])
    assert itself.verdict == "tie"
    assert itself.sentence.startswith("The student is itself the best rule of thumb, a better rule: a tie")
    behind = compare([*contestants(), better], winner=SHAPES[1])
    assert behind.sentence.startswith("The student explains 0.0500 ± ")
    assert behind.verdict == "worse"


def test_a_shape_that_diverged_with_a_seed_is_not_compared():
    half = confirmation(SHAPES[10], "a rule that diverged", (0.9,))
    found = compare([*contestants(), half])
    assert found.rule.origin == RULE
    assert found.verdict == "better"
