"""The report of a search: the front, a recommendation for each latency budget, and what the search cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..markdown_table import markdown_table
from .arguments import SearchArguments
from .ledger import ArchitectureRecord
from .reward import Reward

if TYPE_CHECKING:
    from .search import DistilledStudent, SearchResult

REPORT_FILE = "report.md"
PLOT_FILE = "pareto.png"
SPEEDUP_BUDGETS = (2.0, 4.0, 7.0, 10.0)


def pareto_front(records: Sequence[ArchitectureRecord]) -> list[ArchitectureRecord]:
    """The architectures that no other beats in both R² and speed-up, fastest first."""
    front: list[ArchitectureRecord] = []
    complete = [record for record in records if record.state == "complete"]
    for record in sorted(complete, key=lambda r: (-r.speedup, -_r2(r))):
        if not front or _r2(record) > _r2(front[-1]):
            front.append(record)
    return front


def recommend(
    records: Sequence[ArchitectureRecord], speedup: float, min_speedup: float = 0.0
) -> ArchitectureRecord | None:
    """The architecture of the highest R² that is at least ``speedup`` times faster than the teacher, if any."""
    needed = max(speedup, min_speedup)
    able = [record for record in records if record.state == "complete" and record.speedup >= needed]
    return max(able, key=_r2, default=None)


def write_report(result: SearchResult, args: SearchArguments, teacher: str, reward: Reward) -> Path:
    """Write ``report.md`` and ``pareto.png`` into the run directory, and return the report's path."""
    plot_front(result.records, result.students, args.min_speedup, result.folder / PLOT_FILE)
    path = result.folder / REPORT_FILE
    sections = [
        f"# Search for a student of {teacher}",
        _students_section(result.students),
        f"![R² against latency of every measured architecture]({PLOT_FILE})",
        _recommendation_section(result.records, args.min_speedup),
        _front_section(result.records),
        _architectures_section(result.records, args.min_speedup),
        _method_section(result, args, reward),
        _cost_section(result),
    ]
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def plot_front(
    records: Sequence[ArchitectureRecord], students: Sequence[DistilledStudent], min_speedup: float, path: Path
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
    if min_speedup > 0:
        axes.axvline(100 / min_speedup, color="grey", ls="--", lw=1, label=f"{min_speedup:g}x faster than the teacher")
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


def _recommendation_section(records: Sequence[ArchitectureRecord], min_speedup: float) -> str:
    rows = []
    for budget in SPEEDUP_BUDGETS:
        record = recommend(records, budget, min_speedup)
        name = f"at least {budget:g}x"
        if record is None:
            rows.append([name, "none of the measured architectures", "", "", ""])
        else:
            rows.append(
                [
                    name,
                    str(record.architecture),
                    f"{_r2(record):.3f}",
                    f"{record.latency_ms:.2f}",
                    f"{record.speedup:.2f}x",
                ]
            )
    note = f" Only architectures at least {min_speedup:g}x faster are recommended at all." if min_speedup else ""
    return (
        "## Recommendation for each latency budget\n\n"
        f"The highest R² among the measured architectures that meet the budget; R² is that after the mini-KD.{note}\n\n"
        + markdown_table(["budget", "architecture", "R²", "latency (ms)", "speed-up"], rows)
    )


def _front_section(records: Sequence[ArchitectureRecord]) -> str:
    rows = [
        [f"#{r.number}", str(r.architecture), f"{_r2(r):.3f}", f"{r.latency_ms:.2f}", f"{r.speedup:.2f}x"]
        for r in pareto_front(records)
    ]
    return "## The Pareto front\n\n" + markdown_table(["trial", "architecture", "R²", "latency (ms)", "speed-up"], rows)


def _architectures_section(records: Sequence[ArchitectureRecord], min_speedup: float) -> str:
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
            f"{r.speedup:.2f}x" + (" (too slow)" if r.speedup < min_speedup else ""),
            r.state,
        ]
        for r in ordered
    ]
    header = ["trial", "episode", "architecture", "reward", "loss", "R²", "latency (ms)", "speed-up", "state"]
    return "## Every measured architecture, by reward\n\n" + markdown_table(header, rows)


def _method_section(result: SearchResult, args: SearchArguments, reward: Reward) -> str:
    layers = "last mapped layer" if reward.layers == "last" else "mean of all mapped layers"
    if reward.horizon > 1:
        layers += f", extrapolated to {reward.horizon:g} times the tokens of the mini-KD by its learning curve"
    constraint = f" Hard constraint: at least {args.min_speedup:g}x faster." if args.min_speedup else ""
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
