"""The report of a search: the student, whether the search was worth it, recommendations, and what it cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...export.budgets import Budget, written
from ...utils.markdown_table import markdown_table
from ..arguments import SearchArguments
from ..result import SEARCH, Confirmation, DistilledStudent, SearchResult, best_known, pareto_front
from ..trial import FAILED, Trial
from .comparison import Comparison, compare
from .plots import plot_front, plot_learning_curves

PLOT_FILE, CURVES_FILE = "pareto.png", "learning_curves.png"
BUDGETS = tuple(Budget(speedup) for speedup in (2.0, 4.0, 7.0, 10.0))  # where the user names none
STAGES = {"design": "latencies of shapes, before the first episode", "mini_kd": "mini-KD of all candidates"}


def recommend(
    trials: Sequence[Trial], budget: Budget, confirmations: Sequence[Confirmation] = ()
) -> Confirmation | None:
    """The measured shape (see `best_known`) of the highest quality that meets a budget, if any."""
    able = [one for one in best_known(trials, confirmations) if budget.met_by(one)]
    return max(able, key=lambda one: one.quality, default=None)


def write_report(result: SearchResult, args: SearchArguments, teacher: str, reward: str, space_size: int) -> Path:
    """Write ``report.md``, ``recommendations.json`` and the plots into the run directory; return the report."""
    label = result.quality_label
    plot_front(result, args.budget, result.folder / PLOT_FILE)
    plot_learning_curves(result.trials, result.folder / CURVES_FILE, label)
    recommended, recommendations = _recommendations(result, args)
    among = f" among those {args.budget}" if args.budget.is_limit else ""
    chosen_by = f"the highest reward{among}" if args.budgets is None else "the highest quality within each budget"
    text = json.dumps({"chosen_by": f"{chosen_by} is distilled", "recommendations": recommended}, indent=2)
    (result.folder / "recommendations.json").write_text(text + "\n", encoding="utf-8")
    front = [[_origin(one), *_cells(one)] for one in pareto_front(result.trials, result.confirmations)]
    sections = [
        f"# Search for a student of {teacher}",
        "## The student\n\n" + _students(result.students, label),
        "## Was the search worth it?\n\n" + _comparisons(result),
        f"![{label} against latency of every measured architecture]({PLOT_FILE})",
        f"## Recommendation for each budget\n\nThe highest {label} after the mini-KD among the measured shapes that "
        "meet the budget; of confirmed ones the mean over further seeds. The same in `recommendations.json`, for "
        f"programs.\n\n{recommendations}",
        "## The Pareto front\n\n" + markdown_table(["origin", *_header(label)], front),
        "## Measured again, with further seeds\n\n" + _confirmations(result.confirmations, label),
        "## Every trial, by reward\n\n" + _trials(result.trials, args.budget, label),
        f"![{label} of each candidate along its mini-KD]({CURVES_FILE})",
        "## How it was measured\n\n" + _method(result, args, reward),
        "## What the search cost\n\n" + _cost(result, space_size),
    ]
    path = result.folder / "report.md"
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def comparison_table(found: Comparison) -> str:
    """Winner, best rule of thumb and random median, in Markdown."""
    width = "" if found.half_width is None else f" ± {found.half_width:.4f}"
    above = "" if found.random_percentile is None else f" (the winner is above {found.random_percentile:.0%})"
    shapes = {"winner": found.winner, "best rule of thumb": found.rule, f"random median{above}": found.random_median}
    rows: list[list[str]] = []
    for title, one in shapes.items():
        if one is not None:
            beside = found.relative_latency(one) - 1
            note = f"{beside:+.1%}" + (", favours the winner" if beside < -found.tolerance else "")
            lead = f"{found.winner.quality - one.quality:+.4f}{width}" if rows else ""
            rows.append([title, *_cells(one, ".4f"), note, lead])
    return markdown_table(["shape", *_header(found.label), "latency beside the winner", "lead of the winner"], rows)


def _header(label: str) -> list[str]:
    return ["architecture", label, "latency (ms)", "speed-up"]


def _cells(one: Trial | Confirmation | DistilledStudent, shown: str = ".3f") -> list[str]:
    """Architecture, quality, latency and speed-up; empty where there is none."""
    latency = ["", ""] if one.latency is None else [f"{one.latency.student_ms:.2f}", f"{one.latency.speedup:.2f}x"]
    return [str(one.architecture), "" if one.quality is None else f"{one.quality:{shown}}", *latency]


def _origin(one: Confirmation) -> str:
    return one.origin if one.trial is None else f"{one.origin}, #{one.trial}"


def _students(students: Sequence[DistilledStudent], label: str) -> str:
    if not students:
        return "Distilled by another worker of the study, in its own directory."
    rows = [[f"`{one.path}/`", *_cells(one), f"{one.parameters / 1e6:.1f} M", f"{one.tokens:,}"] for one in students]
    return markdown_table(["student", *_header(label), "parameters", "tokens"], rows)


def _comparisons(result: SearchResult) -> str:
    """The search against rules of thumb, for each distilled student that was confirmed."""
    again, label = result.confirmations, result.quality_label
    compared = [compare(again, winner=student.architecture, label=label) for student in result.students]
    if not any(one is not None and one.winner.origin == SEARCH for one in compared):
        compared.append(compare(again, label=label))  # what was distilled is not what the search found
    parts = [f"{one.sentence}\n\n{comparison_table(one)}" for one in compared if one is not None]
    if not parts:
        return (
            f"Not known: the winner was not compared with rules of thumb. Its {label} in the search is that of one "
            "seed, and the best of many such readings is partly luck."
        )
    return "\n\n".join(parts) + (
        "\n\nAll were trained alike, by mini-KDs with the same further seeds, texts and order, and timed interleaved. "
        "Latencies within 3 % count as equal; slower opponents are not compared, faster ones favour the winner. ± is "
        "half of a 95 % interval of the difference, from the noise that shapes and seeds do not account for, and wider "
        "where the best of several were picked."
    )


def _recommendations(result: SearchResult, args: SearchArguments) -> tuple[list[dict[str, Any]], str]:
    """The shape recommended for each budget of ``args``, or for some speed-ups: for JSON, and as a table."""
    students = {student.architecture: student.path for student in result.students}
    confirmed = {one.architecture for one in result.confirmations}
    names = ("trial", "architecture", "quality", "confirmed", "latency_ms", "speedup", "student")
    values: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    for budget in args.budgets or dict.fromkeys(args.budget.stricter(one) for one in BUDGETS):
        one = recommend(result.trials, budget, result.confirmations)
        found: dict[str, Any] = {"budget": str(budget), "limits": budget.limits, **dict.fromkeys(names)}
        row = [str(budget), "none of the measured architectures", *[""] * 5]
        if one is not None:
            is_confirmed, student = one.architecture in confirmed, students.get(one.architecture)
            figures = (one.quality, is_confirmed, one.latency.student_ms, one.speedup, student)
            found |= dict(zip(names, (one.trial, one.architecture.as_dict(), *figures), strict=True))
            row = [str(budget), *_cells(one), "yes" if is_confirmed else "no", student or ""]
        values.append(found)
        rows.append(row)
    return values, markdown_table(["budget", *_header(result.quality_label), "confirmed", "distilled"], rows)


def _confirmations(confirmations: Sequence[Confirmation], label: str) -> str:
    rows = []
    for one in sorted(confirmations, key=lambda one: -one.quality):
        seeds = f"± {one.deviation:.4f} ({', '.join(f'{quality:.4f}' for quality in one.qualities)})"
        rows.append([_origin(one), *_cells(one, ".4f"), seeds])
    header = ["origin", *_header(label), "standard deviation (each seed)"]
    return markdown_table(header, rows) if rows else "Nothing was."


def _trials(trials: Sequence[Trial], budget: Budget, label: str) -> str:
    limited = [name for name in budget.limits if name not in ("speedup", "latency_ms")]
    rows = [
        [
            f"#{one.number}",
            "earlier" if one.episode < 0 else str(one.episode + 1),
            *_cells(one),
            *(written(name, one.costs[name]) if name in one.costs else "" for name in limited),
            "" if one.reward is None else f"{one.reward:.3f}",
            f"failed: {one.failure}" if one.state == FAILED else one.state,
            "" if budget.met_by(one) else "missed" + ("" if one.tokens else ", so not trained"),
        ]
        for one in sorted(trials, key=lambda one: float("inf") if one.reward is None else -one.reward)
    ]
    return markdown_table(["trial", "episode", *_header(label), *limited, "reward", "state", "budget"], rows)


def _method(result: SearchResult, args: SearchArguments, reward: str) -> str:
    label = result.quality_label
    share = "R² is the share of the teacher's variance that the states of the last mapped layer, projected, explain."
    meaning = share if label == "R²" else "Quality is 1 - loss."
    limit = f" Hard constraint: {args.budget}." if args.budget.is_limit else ""
    after = "the highest reward" if args.objective == "reward" else "the Pareto front of quality (1 - loss) and latency"
    seeds = max((len(one.qualities) for one in result.confirmations), default=0)
    return f"""\
- Latency: {result.latency_method} Weights are random: latency depends on the shape alone.
- Loss and {label}: after the mini-KD, on held-out text that no student was trained on. {meaning}
- Reward: {reward}.{limit}
- Controller: {args.controller}, after {after}; {args.mini_kd_epochs:g} epoch(s) on the proxy set for each candidate.
- Seeds: one in the search, and {seeds} more for what was measured again. Differences of a few thousandths of {label}
  between trials may be chance."""


def _cost(result: SearchResult, space_size: int) -> str:
    states = Counter(one.failure or one.state for one in result.trials).most_common()
    counts = ", ".join(f"{count} {state}" for state, count in states)
    rows = [[STAGES.get(stage, stage.replace("_", " ")), f"{seconds:.0f}"] for stage, seconds in result.cost.items()]
    return (
        f"{len(result.trials)} of {space_size:,} architectures: {counts}. "
        f"{sum(one.tokens for one in result.trials):,} tokens of mini-KD in all, without those of confirmations. The "
        "total leaves out what was lost to interruptions.\n\n" + markdown_table(["stage", "seconds"], rows)
    )
