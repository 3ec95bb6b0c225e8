"""The report of a search: the front, a recommendation for each latency budget, and what the search cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.markdown_table import markdown_table
from .arguments import SearchArguments
from .budgets import LatencyBudget
from .front import FrontUncertainty, front_uncertainty, pareto_front
from .importance import importances
from .ledger import ArchitectureRecord
from .plots import plot_front, plot_learning_curves
from .prediction import predict_space
from .result import DistilledStudent, SearchResult
from .reward import Reward
from .space import SearchSpace

REPORT_FILE = "report.md"
PLOT_FILE = "pareto.png"
CURVES_FILE = "learning_curves.png"
LIKELY = 0.5  # chance from which what is not on the front is named with it
CHOICES_SHOWN = 12
PREDICTED = 5  # unmeasured architectures that the report names
RECOMMENDATIONS_FILE = "recommendations.json"
BUDGETS = tuple(LatencyBudget(speedup) for speedup in (2.0, 4.0, 7.0, 10.0))  # where the user names none


def recommend(records: Sequence[ArchitectureRecord], budget: LatencyBudget) -> ArchitectureRecord | None:
    """The architecture of the highest R² that meets a budget, if any."""
    able = [record for record in records if record.state == "complete" and budget.met_by(record)]
    return max(able, key=_r2, default=None)


def recommendations(result: SearchResult, args: SearchArguments) -> list[dict[str, Any]]:
    """What is recommended for each budget: of ``args``, or for some speed-ups; never unmeasured, JSON can hold it.

    Returns:
        For each ``budget`` in words the ``architecture``, its ``trial``, ``r2`` after the mini-KD, ``latency_ms``,
        ``speedup`` and the ``student`` that was distilled of it, all None where nothing measured meets the budget.
    """
    distilled = {student.architecture: student.path for student in result.students}
    found = []
    for budget in args.budgets or dict.fromkeys(args.budget.stricter(one) for one in BUDGETS):
        record = recommend(result.records, budget)
        limits = {
            "budget": str(budget),
            "speedup_at_least": budget.speedup or None,
            "latency_ms_at_most": budget.latency_ms if budget.latency_ms < math.inf else None,
        }
        values: dict[str, Any] = dict.fromkeys(("architecture", "trial", "r2", "latency_ms", "speedup", "student"))
        if record is not None:
            values = {
                "architecture": record.architecture.as_dict(),
                "trial": record.number,
                "r2": record.r2,
                "latency_ms": record.latency_ms,
                "speedup": record.speedup,
                "student": distilled.get(record.architecture),
            }
        found.append(limits | values)
    return found


def write_report(result: SearchResult, args: SearchArguments, teacher: str, reward: Reward, space: SearchSpace) -> Path:
    """Write ``report.md``, ``recommendations.json`` and the plots into the run directory; return the report."""
    uncertainty = front_uncertainty(result.records, space, args.latency_repeats)
    plot_front(result.records, result.students, args.budget, uncertainty.r2_deviation, result.folder / PLOT_FILE)
    plot_learning_curves(result.records, result.curves, result.folder / CURVES_FILE)
    recommended = recommendations(result, args)
    text = json.dumps({"chosen_by": _chosen_by(args), "recommendations": recommended}, indent=2)
    (result.folder / RECOMMENDATIONS_FILE).write_text(text + "\n", encoding="utf-8")
    path = result.folder / REPORT_FILE
    sections = [
        f"# Search for a student of {teacher}",
        _students_section(result.students),
        f"![R² against latency of every measured architecture]({PLOT_FILE})",
        _recommendation_section(result.records, recommended, args.budget),
        _front_section(result.records, uncertainty),
        _architectures_section(result.records, args.budget),
        *_importance_section(result.records, space),
        *_prediction_section(result.records, space, args.budget),
        f"![R² of each candidate along its mini-KD]({CURVES_FILE})",
        _method_section(result, args, reward),
        _cost_section(result),
    ]
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def _r2(record: ArchitectureRecord) -> float:
    return record.r2 if record.r2 is not None else float("-inf")


def _students_section(students: Sequence[DistilledStudent]) -> str:
    if not students:
        return "## The student\n\nDistilled by another worker of the study, in its own directory."
    rows = [
        [
            f"`{s.path}/`",
            str(s.architecture),
            f"{s.parameters / 1e6:.1f} M",
            f"{s.latency_ms:.2f} (IQR {s.latency_iqr_ms:.2f})",
            f"{s.speedup:.2f}x",
            f"{s.r2:.3f}",
            f"{s.tokens:,}",
        ]
        for s in students
    ]
    header = ["student", "architecture", "parameters", "latency (ms)", "speed-up", "R²", "tokens"]
    return "## The student\n\n" + markdown_table(header, rows)


def _recommendation_section(
    records: Sequence[ArchitectureRecord], recommended: Sequence[Mapping[str, Any]], budget: LatencyBudget
) -> str:
    by_number = {record.number: record for record in records}
    rows = []
    for one in recommended:
        if one["trial"] is None:
            rows.append([one["budget"], "none of the measured architectures", "", "", "", ""])
            continue
        record = by_number[one["trial"]]
        student = f"`{one['student']}/`" if one["student"] else ""
        figures = [f"{_r2(record):.3f}", f"{record.latency_ms:.2f}", f"{record.speedup:.2f}x", student]
        rows.append([one["budget"], str(record.architecture), *figures])
    note = f" Nothing is recommended that is not {budget}." if budget.is_limit else ""
    return (
        "## Recommendation for each latency budget\n\n"
        "The highest R² among the measured architectures that meet the budget; R² is that after the mini-KD."
        f"{note} The same in `{RECOMMENDATIONS_FILE}`, for programs.\n\n"
        + markdown_table(["budget", "architecture", "R²", "latency (ms)", "speed-up", "distilled"], rows)
    )


def _chosen_by(args: SearchArguments) -> str:
    if args.budgets is not None:
        return "the highest R² within each budget is distilled"
    constraint = f" among those {args.budget}" if args.budget.is_limit else ""
    return f"the highest reward{constraint} is distilled"


def _front_section(records: Sequence[ArchitectureRecord], uncertainty: FrontUncertainty) -> str:
    rows = [
        [
            f"#{r.number}",
            str(r.architecture),
            f"{_r2(r):.3f}",
            f"{r.latency_ms:.2f}",
            f"{r.speedup:.2f}x",
            f"{uncertainty.chances[r.number]:.0%}",
        ]
        for r in pareto_front(records)
    ]
    on_it = {record.number for record in pareto_front(records)}
    others = [r for r in records if r.number not in on_it and uncertainty.chances.get(r.number, 0) >= LIKELY]
    noise = (
        "latencies vary as their interquartile ranges say; too little was measured to say how much R² does"
        if uncertainty.r2_deviation is None
        else f"R² varies by ± {uncertainty.r2_deviation:.3f} (the error of predicting an architecture from the others: "
        "rather too much), latencies as their interquartile ranges say"
    )
    maybe = ", ".join(f"#{r.number} ({r.architecture}; {uncertainty.chances[r.number]:.0%})" for r in others)
    return (
        "## The Pareto front\n\n"
        + markdown_table(["trial", "architecture", "R²", "latency (ms)", "speed-up", "on it again"], rows)
        + "\n\nThe last column: in how many of many repetitions of the measurements it would be on the front, if "
        + f"{noise}."
        + (f" As likely as not or more, but not on it this time: {maybe}." if others else "")
    )


def _architectures_section(records: Sequence[ArchitectureRecord], budget: LatencyBudget) -> str:
    def figure(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    ordered = sorted(records, key=lambda r: -(r.reward if r.reward is not None else float("-inf")))
    rows = [
        [
            f"#{r.number}",
            str(r.episode + 1),
            str(r.architecture),
            figure(r.reward),
            figure(r.loss),
            figure(r.r2),
            f"{r.latency_ms:.2f} (IQR {r.latency_iqr_ms:.2f})",
            f"{r.speedup:.2f}x" + ("" if budget.met_by(r) else " (too slow)"),
            r.state,
        ]
        for r in ordered
    ]
    header = ["trial", "episode", "architecture", "reward", "loss", "R²", "latency (ms)", "speed-up", "state"]
    return "## Every measured architecture, by reward\n\n" + markdown_table(header, rows)


def _importance_section(records: Sequence[ArchitectureRecord], space: SearchSpace) -> list[str]:
    """Which choices matter; nothing where too little was measured to say."""
    targets = {"reward": "reward", "R²": "r2", "latency": "latency_ms"}
    found = {title: importances(space, records, name) for title, name in targets.items()}
    if not all(found.values()):
        return []
    rows = [
        [f"`{choice}`", *(f"{shares.get(choice, 0.0):.0%}" for shares in found.values())]
        for choice in list(found["reward"])[:CHOICES_SHOWN]
    ]
    return [
        "## What matters\n\n"
        + markdown_table(["choice", *found], rows)
        + "\n\nShares of the variance of each figure that a choice explains by itself (fANOVA), among what was "
        f"measured: {sum(r.state == 'complete' for r in records)} architectures say it roughly."
    ]


def _prediction_section(records: Sequence[ArchitectureRecord], space: SearchSpace, budget: LatencyBudget) -> list[str]:
    """What the rest of the space promises; nothing where too little was measured to say."""
    prediction = predict_space(space, records, budget)
    if prediction is None or not prediction.architectures:
        return []
    which = "the others" if space.is_enumerable else "others"
    which += f" that are expected to be {budget}" if budget.is_limit else ""
    rows = [
        [
            str(one.architecture),
            f"{one.reward:.3f} ± {one.deviation:.3f}",
            f"{one.latency_ms:.2f}",
            f"{one.speedup:.2f}x",
            f"{one.chance:.0%}",
        ]
        for one in prediction.architectures[:PREDICTED]
    ]
    header = ["architecture", "expected reward", "latency (ms)", "speed-up", "chance to beat the best"]
    return [
        "## What was not measured\n\n"
        f"A Gaussian process of the rewards and a regression of latency (off by {prediction.latency_error:.1%} in the "
        f"median where one architecture is left out) say of {len(prediction.architectures):,} architectures, {which}, "
        "that these promise most. They are guesses: nothing is recommended that was not measured. More episodes would "
        "measure them.\n\n" + markdown_table(header, rows)
    ]


def _method_section(result: SearchResult, args: SearchArguments, reward: Reward) -> str:
    layers = "last mapped layer" if reward.layers == "last" else "mean of all mapped layers"
    if reward.horizon > 1:
        layers += f", extrapolated to {reward.horizon:g} times the tokens of the mini-KD by its learning curve"
    constraint = f" Hard constraint: {args.budget}." if args.budget.is_limit else ""
    after = "the highest reward" if args.objective == "reward" else "the Pareto front of quality (1 - loss) and latency"
    return (
        "## How it was measured\n\n"
        f"- Latency: {result.latency_method} Weights are random: latency depends on the shape alone.\n"
        "- Loss and R²: on held-out text that no student was trained on. R² is the share of the teacher's variance "
        "that the projected states of the student's last mapped layer explain, averaged over dimensions, after the "
        "mini-KD; the loss is that of the reward.\n"
        f"- Reward: (1 - loss) * (latency / ({reward.beta:g} * teacher's latency)) ** {reward.alpha:g}; "
        f"loss: {layers}.{constraint}\n"
        f"- Controller: {args.controller}, after {after}; {args.mini_kd_epochs:g} epoch(s) on the proxy set for "
        "each candidate.\n"
        "- One seed: differences of a few thousandths of R² between architectures may be chance."
    )


def _cost_section(result: SearchResult) -> str:
    names = {
        "teacher_statistics": "statistics of the teacher",
        "latency": "latency measurements",
        "mini_kd": "mini-KD of all candidates",
        "distillation": "distillation on the full corpus",
        "waiting": "waiting for other workers",
        "storage": "calls of the storage",
        "total": "all, without what was lost to interruptions",
    }
    rows = [[names.get(stage, stage), f"{seconds:.0f}"] for stage, seconds in result.cost.items()]
    tokens = sum(record.tokens for record in result.records)
    return (
        "## What the search cost\n\n"
        f"{len(result.records)} architectures, {tokens:,} tokens of mini-KD in all.\n\n"
        + markdown_table(["stage", "seconds"], rows)
    )
