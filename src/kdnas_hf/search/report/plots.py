"""The plots of a search's report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..budgets import Budget
from ..result import RANDOM, SEARCH, SearchResult, best_known, pareto_front
from ..trial import STOPPED, Trial

NAMED = 5  # learning curves that the legend names
COLORS = {SEARCH: "black", RANDOM: "tab:grey", "rule of thumb": "tab:blue"}


def plot_front(result: SearchResult, budget: Budget, path: Path, label: str = "R²") -> None:
    """Plot quality against latency: complete trials, the front, what was measured again (± a deviation), students."""
    figure, axes = _axes("What each architecture keeps of the teacher, and what it costs", label)
    # teacher and candidate are measured side by side: their ratio does not drift with the machine
    axes.set_xlabel("median latency (% of the teacher's)")
    known = [best_known(trial, result.confirmations) for trial in result.trials if trial.is_complete]
    episodes = [trial.episode + 1 for trial in known]
    points = axes.scatter(*_points(known), c=episodes, s=36, zorder=3, label="candidate after its mini-KD")
    if len(set(episodes)) > 1:
        figure.colorbar(points, ax=axes, label="episode", ticks=sorted(set(episodes)))
    axes.step(*_points(pareto_front(known)), where="post", color="tab:red", lw=1.2, label="Pareto front")
    for name, color in COLORS.items():
        if again := [one for one in result.confirmations if name == ("rule of thumb" if one.is_rule else one.origin)]:
            style: dict[str, Any] = {"fmt": "o", "color": color, "mfc": "none", "ms": 9, "capsize": 3, "zorder": 4}
            axes.errorbar(*_points(again), [one.deviation for one in again], label=f"{name}, further seeds", **style)
    if result.students:
        axes.scatter(*_points(result.students), marker="*", s=220, ec="black", zorder=5, label="distilled student")
    limits = [100 / budget.speedup] if budget.speedup > 0 else []
    if known and budget.latency_ms < math.inf:  # beside the teacher's median over all measurements
        teacher_ms = statistics.median(trial.latency.teacher_ms for trial in known if trial.latency is not None)
        limits.append(100 * budget.latency_ms / teacher_ms)
    if limits:
        axes.axvline(min(limits), color="grey", ls="--", lw=1, label=f"hard constraint: {budget}")
    axes.legend(loc="best")
    figure.savefig(path, dpi=130)


def plot_learning_curves(trials: Sequence[Trial], path: Path, label: str = "R²") -> None:
    """Plot quality of each trial along its mini-KD; those that were stopped early are dotted."""
    figure, axes = _axes("How the candidates learn", label)
    axes.set_xlabel("optimizer steps of the mini-KD")
    trained = [trial for trial in trials if trial.readings]
    for rank, trial in enumerate(sorted(trained, key=lambda one: math.inf if one.reward is None else -one.reward)):
        style: dict[str, Any] = {"color": "silver", "lw": 0.8, "ls": ":" if trial.state == STOPPED else "-"}
        if rank < NAMED and trial.is_complete:
            style |= {"color": f"C{rank}", "lw": 1.6, "zorder": 3, "label": f"#{trial.number} {trial.architecture}"}
        axes.plot(*zip(*sorted(trial.readings.items()), strict=True), marker="o", ms=3, **style)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="best", title="highest rewards", fontsize="small")
    figure.savefig(path, dpi=130)


def _axes(title: str, label: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(title=title, ylabel=f"{label} on held-out text")
    axes.grid(alpha=0.3)
    return figure, axes


def _points(measured: Sequence[Any]) -> list[list[float]]:
    return [[100 / one.speedup for one in measured], [one.quality for one in measured]]
