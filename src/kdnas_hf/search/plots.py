"""The plots of a search's report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from .budgets import LatencyBudget
from .front import pareto_front
from .ledger import ArchitectureRecord
from .result import DistilledStudent

NAMED = 5  # learning curves that the legend names


def plot_front(
    records: Sequence[ArchitectureRecord],
    students: Sequence[DistilledStudent],
    budget: LatencyBudget,
    r2_deviation: float | None,
    path: Path,
) -> None:
    """Plot R² against latency: every architecture, the front with its uncertainty, and the distilled students.

    Args:
        records: What was measured.
        students: What was distilled.
        budget: The hard constraint.
        r2_deviation: Standard deviation of an R², if it is known.
        path: Of the PNG.
    """
    from matplotlib.figure import Figure

    complete = [record for record in records if record.state == "complete" and record.r2 is not None]
    front = pareto_front(records)
    figure = Figure(figsize=(8, 5), layout="constrained")
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
    if r2_deviation is not None and front:
        axes.fill_between(
            [100 / r.speedup for r in front], [_r2(r) - r2_deviation for r in front],
            [_r2(r) + r2_deviation for r in front], step="post", color="tab:red", alpha=0.15, lw=0,
            label="± one standard deviation of R²",
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


def plot_learning_curves(
    records: Sequence[ArchitectureRecord], curves: Mapping[int, Mapping[int, float]], path: Path
) -> None:
    """Plot R² of each candidate along its mini-KD; those that were stopped early are dotted.

    Args:
        records: What was measured.
        curves: R² by optimizer steps, of each trial.
        path: Of the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    by_reward = sorted(records, key=lambda r: -(r.reward if r.reward is not None else -math.inf))
    for rank, record in enumerate(by_reward):
        curve = sorted(curves.get(record.number, {}).items())
        named = rank < NAMED and record.state == "complete"
        axes.plot(
            [step for step, _ in curve], [r2 for _, r2 in curve], marker="o", ms=3, zorder=3 if named else 2,
            ls=":" if record.state == "stopped" else "-", lw=1.6 if named else 0.8,
            color=f"C{rank}" if named else "silver", label=f"#{record.number} {record.architecture}" if named else None,
        )  # fmt: skip
    axes.set_xlabel("optimizer steps of the mini-KD")
    axes.set_ylabel("R² of the last layer on held-out text")
    axes.set_title("How the candidates learn")
    axes.grid(alpha=0.3)
    if any(record.state == "complete" for record in by_reward[:NAMED]):
        axes.legend(loc="best", title="highest rewards", fontsize="small")
    figure.savefig(path, dpi=130)


def _r2(record: ArchitectureRecord) -> float:
    return record.r2 if record.r2 is not None else math.nan
