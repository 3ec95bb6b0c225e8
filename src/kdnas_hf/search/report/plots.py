"""The plots of a search's report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...export.budgets import Budget
from ..result import RANDOM, SEARCH, SearchResult, best_known, pareto_front
from ..trial import STOPPED, Trial

NAMED = 5  # learning curves that the legend names
MARKERS = {SEARCH: ("o", "black"), RANDOM: ("x", "tab:grey"), "rule of thumb": ("^", "tab:blue")}


def plot_front(result: SearchResult, budget: Budget, path: Path) -> None:
    """Plot quality against latency: every complete trial, the front, what was measured again, and the students.

    What was measured again has error bars of a standard deviation over seeds.
    """
    figure, axes = _axes("What each architecture keeps of the teacher, and what it costs", result.quality_label)
    # teacher and candidate are measured side by side: their ratio does not drift with the machine
    axes.set_xlabel("median latency (% of the teacher's)")
    known = {one.architecture: one for one in best_known(result.trials, result.confirmations)}
    episodes = {trial.architecture: trial.episode + 1 for trial in result.trials if trial.is_complete}
    measured = [known[architecture] for architecture in episodes]
    style: dict[str, Any] = {"c": list(episodes.values()), "s": 36, "zorder": 3}
    points = axes.scatter(*_points(measured), **style, label="candidate after its mini-KD")
    if len(set(episodes.values())) > 1:
        figure.colorbar(points, ax=axes, label="episode", ticks=sorted(set(episodes.values())))
    front = _points(pareto_front(result.trials, result.confirmations))
    axes.step(*front, where="post", color="tab:red", lw=1.2, label="Pareto front")
    for name, (marker, color) in MARKERS.items():
        again = [one for one in result.confirmations if name == ("rule of thumb" if one.is_rule else one.origin)]
        if again:
            axes.errorbar(
                *_points(again), yerr=[one.deviation for one in again], fmt=marker, color=color, mfc="none", ms=9,
                lw=1, capsize=3, zorder=4, label=f"{name}, further seeds",
            )  # fmt: skip
    if result.students:
        style = {"marker": "*", "s": 220, "color": "tab:orange", "edgecolor": "black", "zorder": 5}
        axes.scatter(*_points(result.students), **style, label="distilled student")
    # a limit in milliseconds is drawn beside the teacher's median over all measurements
    teacher_ms = statistics.median([one.latency.teacher_ms for one in known.values()] or [math.nan])
    limit = min(100 / budget.speedup if budget.speedup else math.inf, 100 * budget.latency_ms / teacher_ms)
    if limit < math.inf:
        axes.axvline(limit, color="grey", ls="--", lw=1, label=f"hard constraint: {budget}")
    axes.legend(loc="best")
    figure.savefig(path, dpi=130)


def plot_learning_curves(trials: Sequence[Trial], path: Path, label: str) -> None:
    """Plot quality of each trial along its mini-KD; those that were stopped early are dotted."""
    figure, axes = _axes("How the candidates learn", label)
    axes.set_xlabel("optimizer steps of the mini-KD")
    trained = [trial for trial in trials if trial.readings]
    for rank, trial in enumerate(sorted(trained, key=lambda one: math.inf if one.reward is None else -one.reward)):
        named = rank < NAMED and trial.is_complete
        axes.plot(
            *zip(*sorted(trial.readings.items()), strict=True), marker="o", ms=3, zorder=3 if named else 2,
            ls=":" if trial.state == STOPPED else "-", lw=1.6 if named else 0.8,
            color=f"C{rank}" if named else "silver", label=f"#{trial.number} {trial.architecture}" if named else None,
        )  # fmt: skip
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
    """Latencies of confirmations or students in percent of the teacher's, and their qualities."""
    return [[100 / one.speedup for one in measured], [one.quality for one in measured]]
