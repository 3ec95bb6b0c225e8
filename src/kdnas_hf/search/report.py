"""The report of a search: the front, a recommendation for each latency budget, and what the search cost."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..markdown_table import markdown_table
from .arguments import SearchArguments
from .budgets import LatencyBudget
from .ledger import ArchitectureRecord
from .prediction import predict_space
from .reward import Reward
from .space import SearchSpace

if TYPE_CHECKING:
    from .search import DistilledStudent, SearchResult

REPORT_FILE = "report.md"
PLOT_FILE = "pareto.png"
PREDICTED = 5  # unmeasured architectures that the report names
RECOMMENDATIONS_FILE = "recommendations.json"
BUDGETS = tuple(LatencyBudget(speedup) for speedup in (2.0, 4.0, 7.0, 10.0))  # where the user names none


def pareto_front(records: Sequence[ArchitectureRecord]) -> list[ArchitectureRecord]:
    """The architectures that no other beats in both R² and speed-up, fastest first."""
    front: list[ArchitectureRecord] = []
    complete = [record for record in records if record.state == "complete"]
    for record in sorted(complete, key=lambda r: (-r.speedup, -_r2(r))):
        if not front or _r2(record) > _r2(front[-1]):
            front.append(record)
    return front


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
    for budget in args.budgets or [args.budget.stricter(one) for one in BUDGETS]:
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
    """Write ``report.md``, ``recommendations.json`` and ``pareto.png`` into the run directory; return the report."""
    plot_front(result.records, result.students, args.budget, result.folder / PLOT_FILE)
    recommended = recommendations(result, args)
    text = json.dumps({"chosen_by": _chosen_by(args), "recommendations": recommended}, indent=2)
    (result.folder / RECOMMENDATIONS_FILE).write_text(text + "\n", encoding="utf-8")
    path = result.folder / REPORT_FILE
    sections = [
        f"# Search for a student of {teacher}",
        _students_section(result.students),
        f"![R² against latency of every measured architecture]({PLOT_FILE})",
        _recommendation_section(result.records, recommended, args.budget),
        _front_section(result.records),
        _architectures_section(result.records, args.budget),
        *_prediction_section(result.records, space),
        _method_section(result, args, reward),
        _cost_section(result),
    ]
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def plot_front(
    records: Sequence[ArchitectureRecord], students: Sequence[DistilledStudent], budget: LatencyBudget, path: Path
) -> None:
    """Plot R² against latency: every architecture, the front, and the distilled students."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    complete = [record for record in records if record.state == "complete"]
    front = pareto_front(records)
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    episodes = [record.episode + 1 for record in complete]
    points = axes.scatter(
        [100 / r.speedup for r in complete], [_r2(r) for r in complete], c=episodes, cmap="viridis", s=36, zorder=3,
        label="candidate after its mini-KD",
    )  # fmt: skip
    if len(set(episodes)) > 1:
        figure.colorbar(points, ax=axes, label="episode", ticks=sorted(set(episodes)))
    axes.step(
        [100 / r.speedup for r in front], [_r2(r) for r in front], where="post", color="tab:red", lw=1.2,
        label="Pareto front",
    )  # fmt: skip
    if students:
        axes.scatter(
            [100 / s.speedup for s in students], [s.r2 for s in students], marker="*", s=220, color="tab:orange",
            edgecolor="black", zorder=4, label="student after full distillation",
        )  # fmt: skip
    limits = [100 / budget.speedup] if budget.speedup > 0 else []
    if complete and budget.latency_ms < math.inf:  # beside the teacher's median over all measurements
        limits.append(100 * budget.latency_ms / statistics.median(r.teacher_latency_ms for r in complete))
    if limits:
        axes.axvline(min(limits), color="grey", ls="--", lw=1, label=f"hard constraint: {budget}")
    # teacher and candidate are measured side by side: their ratio does not drift with the machine
    axes.set_xlabel("median latency (% of the teacher's)")
    axes.set_ylabel("R² of the last layer on held-out text")
    axes.set_title("What each architecture explains of the teacher, and what it costs")
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    figure.savefig(path, dpi=130)


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


def _front_section(records: Sequence[ArchitectureRecord]) -> str:
    rows = [
        [f"#{r.number}", str(r.architecture), f"{_r2(r):.3f}", f"{r.latency_ms:.2f}", f"{r.speedup:.2f}x"]
        for r in pareto_front(records)
    ]
    return "## The Pareto front\n\n" + markdown_table(["trial", "architecture", "R²", "latency (ms)", "speed-up"], rows)


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


def _prediction_section(records: Sequence[ArchitectureRecord], space: SearchSpace) -> list[str]:
    """What the rest of the space promises; nothing where too little was measured to say."""
    prediction = predict_space(space, records)
    if prediction is None or not prediction.architectures:
        return []
    rows = [
        [
            str(one.architecture),
            f"{one.reward:.3f} ± {one.deviation:.3f}",
            f"{one.latency_ms:.2f}",
            f"{one.teacher_latency_ms / one.latency_ms:.2f}x",
            f"{one.chance:.0%}",
        ]
        for one in prediction.architectures[:PREDICTED]
    ]
    header = ["architecture", "expected reward", "latency (ms)", "speed-up", "chance to beat the best"]
    return [
        "## What was not measured\n\n"
        f"A Gaussian process of the rewards and a regression of latency (off by {prediction.latency_error:.1%} in the "
        f"median where one architecture is left out) say of the other {len(prediction.architectures):,} architectures "
        "that these promise most. They are guesses: nothing is recommended that was not measured. More episodes would "
        "measure them.\n\n" + markdown_table(header, rows)
    ]


def _method_section(result: SearchResult, args: SearchArguments, reward: Reward) -> str:
    layers = "last mapped layer" if reward.layers == "last" else "mean of all mapped layers"
    if reward.horizon > 1:
        layers += f", extrapolated to {reward.horizon:g} times the tokens of the mini-KD by its learning curve"
    constraint = f" Hard constraint: {args.budget}." if args.budget.is_limit else ""
    return (
        "## How it was measured\n\n"
        f"- Latency: {result.latency_method} Weights are random: latency depends on the shape alone.\n"
        "- Loss and R²: on held-out text that no student was trained on. R² is the share of the teacher's variance "
        "that the projected states of the student's last mapped layer explain, averaged over dimensions, after the "
        "mini-KD; the loss is that of the reward.\n"
        f"- Reward: (1 - loss) * (latency / ({reward.beta:g} * teacher's latency)) ** {reward.alpha:g}; "
        f"loss: {layers}.{constraint}\n"
        f"- Controller: {args.controller}; {args.mini_kd_epochs:g} epoch(s) on the proxy set for each candidate.\n"
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
