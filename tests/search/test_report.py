"""What a search found, its report, and the recommendations for programs."""

import json
from dataclasses import replace

import pytest
from records import confirmation, trial

from kdnas_hf.export import Budget
from kdnas_hf.latency import Latency
from kdnas_hf.search import (
    Confirmation,
    DistilledStudent,
    Reward,
    SearchArguments,
    SearchResult,
    pareto_front,
    recommend,
)
from kdnas_hf.search.report import write_report
from kdnas_hf.search.result import best_known
from kdnas_hf.search.trial import DIVERGED, TOO_SLOW
from kdnas_hf.students import Architecture

A, B, C, D, E, F = (Architecture(layers, 2, 8, 16, "gelu") for layers in (1, 2, 3, 4, 5, 6))
TRIALS = [
    trial(0, A, quality=0.1, latency=4),
    trial(1, B, quality=0.3, latency=8),
    trial(2, C, quality=0.2, latency=9),  # slower and worse than the one before
    trial(3, D, quality=0.5, latency=20),
    trial(4, E, state="failed", latency=30, failure=TOO_SLOW, episode=1),
    trial(5, F, state="failed", latency=25, failure=DIVERGED, tokens=70, episode=1),
    trial(6, F, state="stopped", quality=0.6, latency=25, episode=1),
]
CONFIRMATIONS = [
    confirmation(B, qualities=(0.26, 0.28), latency=8.4, trial=1),
    confirmation(C, "teacher's width, 3 layers", (0.21, 0.22), latency=8.5),
    confirmation(E, "random", (0.15, 0.19), latency=8.3),
]


def student(architecture=B, path="student", **values):
    figures = {"quality": 0.45, "loss": 0.55, "quality_per_layer": {"1": 0.4, "2": 0.45}}
    latency, costs = Latency(8.0, 0.5, 40.0), {"parameters": 1_234_567}
    figures |= {"latency": latency, "costs": costs, "tokens": 12_345, "reward": 0.5}
    return DistilledStudent(path=path, architecture=architecture, **figures | values)


def report_of(folder, *, label="R²", confirmations=CONFIRMATIONS, students=None, trials=TRIALS, **args):
    students = [student()] if students is None else students
    cost = {"design": 3.0, "latency": 8.0, "confirmation": 21.0, "teacher_statistics": 1.0, "total": 99.0}
    result = SearchResult(folder, trials, confirmations, students, "timed so.", label, cost)
    path = write_report(result, SearchArguments(**args), "a teacher", str(Reward(alpha=-0.1)), 180)
    return path.read_text()


def section(report, title):
    return report.split(f"## {title}")[1].split("\n## ")[0]


def row(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_front_holds_what_no_other_beats_in_both():
    assert [one.trial for one in pareto_front(TRIALS)] == [0, 1, 3]
    again = [*TRIALS, trial(7, A, quality=0.1, latency=4), trial(8, F, quality=0.05, latency=3)]
    assert [one.trial for one in pareto_front(again)] == [8, 0, 1, 3]  # of equals one


def test_recommendation_is_the_best_that_meets_the_budget():
    assert [recommend(TRIALS, Budget(speedup)).trial for speedup in (2, 4, 7, 10)] == [3, 1, 0, 0]
    assert recommend(TRIALS, Budget(11)) is None
    assert recommend(TRIALS, Budget(2).stricter(Budget(4))).trial == 1
    heavy = [replace(TRIALS[3], costs={"parameters": 5e6}), *TRIALS[:3]]
    assert recommend(heavy, Budget(2, parameters=1e6)).trial == 1


def test_what_was_confirmed_counts_with_the_mean_over_its_seeds_everywhere():
    lucky = confirmation(B, qualities=(0.1, 0.2), latency=9.5, trial=1)
    known = {one.trial: one.quality for one in best_known(TRIALS, [lucky])}
    assert known == {0: 0.1, 1: pytest.approx(0.15), 2: 0.2, 3: 0.5}
    assert recommend(TRIALS, Budget(4), [lucky]).trial == 2
    assert [one.trial for one in pareto_front(TRIALS, [lucky])] == [0, 2, 3]
    slow = confirmation(B, qualities=(0.3, 0.3), latency=10.1, trial=1)  # timed better, it misses 4x
    assert recommend(TRIALS, Budget(4), [slow]).trial == 2
    # a shape of two origins is one, and the first counts
    twice = [lucky, confirmation(B, "2 layers", (0.1, 0.2), latency=9.5)]
    assert [one.origin for one in best_known(TRIALS[:1], twice)] == ["search", "search"]


def test_a_rule_of_thumb_that_was_measured_may_be_the_best():
    rule = confirmation(F, "6 layers", (0.4, 0.42), latency=8.0)
    assert recommend(TRIALS, Budget(4), [rule]) is rule
    assert pareto_front(TRIALS, [rule])[1] is rule


@pytest.mark.parametrize("made", [student(costs={"parameters": 5, "size_mb": 2.5}), CONFIRMATIONS[0], CONFIRMATIONS[2]])
def test_what_was_found_is_read_back_from_json(made):
    assert type(made).from_dict(json.loads(json.dumps(made.to_dict()))) == made
    with pytest.raises((TypeError, KeyError)):
        type(made).from_dict({"odd": 1})


def test_a_confirmation_is_the_mean_of_its_seeds():
    one = confirmation(A, qualities=[0.1, 0.2, 0.6])
    assert (one.quality, one.deviation) == (pytest.approx(0.3), pytest.approx(0.2645751))
    assert confirmation(A, qualities=(0.1,)).deviation == 0.0
    assert [Confirmation(**vars(one) | {"origin": name}).is_rule for name in ("search", "random", "2 layers")] == [
        False,
        False,
        True,
    ]


def test_the_report_says_near_its_top_whether_the_search_was_worth_it(tmp_path):
    text = section(report_of(tmp_path), "Was the search worth it?")
    assert "The best shape of the search explains 0.0550 ± " in text
    assert "(teacher's width, 3 layers), at equal latency: " in text
    assert row(text, "winner")[1:5] == [str(B), "0.2700", "8.40", "4.76x"]
    assert row(text, "best rule of thumb")[1:6] == [str(C), "0.2150", "8.50", "4.71x", "+1.2%"]
    assert row(text, "random median (the winner is above 100%)")[1] == str(E)
    assert row(text, "random median")[6].startswith("+0.1000 ± ")
    report = (tmp_path / "report.md").read_text()
    assert report.index("## The student") < report.index("## Was the search") < report.index("## Recommendation")


def test_a_faster_opponent_is_said_to_favour_the_winner(tmp_path):
    faster = [*CONFIRMATIONS[:1], confirmation(A, "1 layer", (0.2, 0.21), latency=4.2)]
    text = section(report_of(tmp_path, confirmations=faster), "Was the search worth it?")
    assert row(text, "best rule of thumb")[5] == "-50.0%, favours the winner"


def test_without_a_confirmation_the_report_claims_nothing(tmp_path):
    report = report_of(tmp_path, confirmations=[])
    assert "Not known: the winner was not compared" in section(report, "Was the search worth it?")
    assert "Nothing was." in section(report, "Measured again")
    assert "and 0 more for what was measured again" in report
    # a student that was not confirmed, beside one that was
    both = report_of(tmp_path, students=[student(), student(D, "student_2")])
    assert section(both, "Was the search worth it?").count("| winner |") == 1
    alone = report_of(tmp_path, students=[])  # distilled by another worker
    assert row(section(alone, "Was the search worth it?"), "winner")[1] == str(B)


def test_where_a_rule_is_distilled_the_search_is_compared_as_well(tmp_path):
    text = section(report_of(tmp_path, students=[student(C)]), "Was the search worth it?")
    assert "The student is itself the best rule of thumb, teacher's width, 3 layers: a tie, the search gains" in text
    assert "The best shape of the search explains 0.0550 ± " in text
    recommended = json.loads((tmp_path / "recommendations.json").read_text())["recommendations"]
    assert [one["student"] for one in recommended] == [None] * 4
    rule = confirmation(C, "3 layers", (0.41, 0.42), latency=8.5)
    report = report_of(tmp_path, confirmations=[CONFIRMATIONS[0], rule], students=[student(C)])
    (one,) = [
        one
        for one in json.loads((tmp_path / "recommendations.json").read_text())["recommendations"]
        if one["limits"] == {"speedup": 4.0}
    ]
    assert (one["trial"], one["confirmed"], one["student"]) == (None, True, "student")
    assert row(section(report, "The Pareto front"), "3 layers")[1] == str(C)


def test_every_trial_is_listed_with_what_became_of_it(tmp_path):
    text = section(report_of(tmp_path, speedup=1.5), "Every trial")
    assert row(text, "#0") == ["#0", "1", str(A), "0.100", "4.00", "10.00x", "0.100", "complete", ""]
    assert row(text, "#4") == [
        "#4",
        "2",
        str(E),
        "",
        "30.00",
        "1.33x",
        "",
        "failed: too slow",
        "missed, so not trained",
    ]
    assert row(text, "#5")[3:] == ["", "25.00", "1.60x", "", "failed: diverged", ""]
    assert row(text, "#6")[7] == "stopped"
    untimed = trial(7, A, state="failed", failure="out of memory", latency=None)
    untimed = replace(untimed, latency=None)
    assert row(report_of(tmp_path, trials=[untimed]), "#7")[3:8] == ["", "", "", "", "failed: out of memory"]


def test_what_else_a_budget_limits_has_a_column(tmp_path):
    class Arguments(SearchArguments):
        budget = Budget(2, size_mb=100)

    trials = [replace(TRIALS[0], costs={"size_mb": 12.25}), replace(TRIALS[1], costs={"size_mb": 120.0}), TRIALS[2]]
    result = SearchResult(tmp_path, trials, [], [], "timed so.")
    report = write_report(result, Arguments(), "a teacher", str(Reward(alpha=-0.1)), 180).read_text()
    text = section(report, "Every trial")
    assert row(text, "trial")[6] == "size_mb"
    assert row(text, "#0")[6:] == ["12.25 MB", "0.100", "complete", ""]
    assert row(text, "#1")[6:] == ["120 MB", "0.300", "complete", "missed"]
    assert row(text, "#2")[6] == ""
    (first, *_) = json.loads((tmp_path / "recommendations.json").read_text())["recommendations"]
    assert first["limits"] == {"speedup": 2.0, "size_mb": 100}
    assert first["trial"] == 2


def test_the_report_lists_what_was_measured_again_what_it_cost_and_how(tmp_path):
    report = report_of(tmp_path)
    text = section(report, "Measured again")
    assert row(text, "search, #1")[1:] == [str(B), "0.2700", "8.40", "4.76x", "± 0.0141 (0.2600, 0.2800)"]
    assert row(text, "random")[0] == "random"
    assert "and 2 more for what was measured again" in report
    assert "(1 - L) * (latency / (0.6 * teacher's latency)) ** -0.1; L: last mapped layer." in report
    text = section(report, "What the search cost")
    assert "7 of 180 architectures: 4 complete, 1 too slow, 1 diverged, 1 stopped. 2,570 tokens" in text
    assert row(text, "teacher statistics")[1] == "1"
    assert row(text, "latencies of shapes, before the first episode")[1] == "3"
    assert row(text, "confirmation")[1] == "21"
    assert row(section(report, "The student"), "`student/`")[2:] == ["0.450", "8.00", "5.00x", "1.2 M", "12,345"]


def test_recommendations_are_for_programs_too(tmp_path):
    report = report_of(tmp_path, speedup_budgets=[2.0, 4.0, 20.0])
    told = json.loads((tmp_path / "recommendations.json").read_text())
    assert told["chosen_by"] == "the highest quality within each budget is distilled"
    slow, fast, none = told["recommendations"]
    assert (slow["trial"], slow["quality"], slow["confirmed"], slow["student"]) == (3, 0.5, False, None)
    assert fast == {
        "budget": "at least 4x faster than the teacher",
        "limits": {"speedup": 4.0},
        "trial": 1,
        "architecture": B.as_dict(),
        "quality": pytest.approx(0.27),
        "confirmed": True,
        "latency_ms": 8.4,
        "speedup": pytest.approx(40 / 8.4),
        "student": "student",
    }
    assert none == dict.fromkeys(fast) | {"budget": none["budget"], "limits": {"speedup": 20.0}}
    text = section(report, "Recommendation")
    assert row(text, "at least 4x")[1:] == [str(B), "0.270", "8.40", "4.76x", "yes", "student"]
    assert row(text, "at least 20x")[1] == "none of the measured architectures"
    # without budgets some speed-ups, each within the hard constraint
    report_of(tmp_path, speedup=3.0)
    told = json.loads((tmp_path / "recommendations.json").read_text())
    assert told["chosen_by"] == "the highest reward among those at least 3x faster than the teacher is distilled"
    assert [one["limits"]["speedup"] for one in told["recommendations"]] == [3.0, 4.0, 7.0, 10.0]


def test_quality_that_is_not_r2_is_not_called_so(tmp_path):
    report = report_of(tmp_path, label="quality")
    assert "R²" not in report
    assert "Quality is 1 - loss." in report
    assert row(report, "#0 | 1 | ")[3] == "0.100"
    assert "| architecture | quality |" in report


def test_plots_hold_confirmed_shapes_and_the_readings(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = {}

    def keep(figure, path, **kwargs):
        axes = figure.axes[0]
        drawn[path.name] = (axes.get_legend_handles_labels()[1], [line.get_xydata().tolist() for line in axes.lines])

    monkeypatch.setattr(Figure, "savefig", keep)
    report_of(tmp_path, speedup=2.0)
    labels, lines = drawn["pareto.png"]
    assert {"search, further seeds", "random, further seeds", "rule of thumb, further seeds"} <= set(labels)
    assert "hard constraint: at least 2x faster than the teacher" in labels
    assert pytest.approx([100 * 8.4 / 40, 0.27]) in [point for line in lines for point in line]
    labels, lines = drawn["learning_curves.png"]
    assert labels == [f"#3 {D}", f"#1 {B}", f"#2 {C}", f"#0 {A}"]  # by reward; one that stopped early is not named
    assert [[5.0, 0.15], [10.0, 0.3]] in lines
    assert len(lines) == 5


def test_a_search_of_which_all_failed_has_a_report(tmp_path):
    report = report_of(tmp_path, trials=TRIALS[4:6], confirmations=[], students=[])
    assert (tmp_path / "pareto.png").stat().st_size > 1000
    assert "none of the measured architectures" in report
