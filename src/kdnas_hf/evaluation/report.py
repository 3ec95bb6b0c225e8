"""What people read of an evaluation: ``results.md`` and a plot of scores against latency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..utils.markdown_table import markdown_table
from .arguments import RANDOM
from .results import BASELINE, STUDENT, TASK_KD, TEACHER, EvaluationResults, Spread, TaskScores

REPORT_FILE = "results.md"
PLOT_FILE = "scores.png"


def write_report(results: EvaluationResults, folder: Path) -> Path:
    """Write ``results.md`` and ``scores.png`` into a folder, and return the report's path."""
    plot_scores(results, folder / PLOT_FILE)
    student = Path(str(results.configuration["student"])).name
    sections = [f"# What `{student}` is worth", summary(results), f"![Scores against latency]({PLOT_FILE})"]
    sections += [_task_section(task, results.missing_languages) for task in results.tasks.values()]
    sections.append("## How it was measured\n\n" + method(results))
    path = folder / REPORT_FILE
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def summary(results: EvaluationResults) -> str:
    """A table with a line for each model and task: average score, retention, speed-up."""
    rows = []
    for task in results.tasks.values():
        for name, model in task.models.items():
            zero_shot = "" if model.zero_shot is None else _score(model.zero_shot)
            rows.append(
                [
                    f"{task.task} ({_metric(task)}, {len(model.languages)} languages)",
                    name,
                    _score(model.average),
                    zero_shot,
                    _retention(model.average),
                    _speedup(results, name),
                ]
            )
    header = ["task", "model", "average", f"average without {_trained(results)}", "retention", "speed-up"]
    text = markdown_table(header, rows)
    kept = results.retention
    if STUDENT in kept and len(results.tasks) > 1:
        others = [f"{name} {value:.1f} %" for name, value in kept.items() if name != STUDENT]
        text += f"\n\nRetention averaged over tasks: student **{kept[STUDENT]:.1f} %**"
        text += f"; {', '.join(others)}." if others else "."
    return text


def language_table(task: TaskScores, missing_languages: Sequence[str] | None = None) -> str:
    """A task's scores by language: every model's mean and standard deviation, and what of the teacher's it keeps."""
    others = [name for name in task.models if name != TEACHER]
    header = ["language", *([TEACHER] if TEACHER in task.models else [])]
    for name in others:
        header += [name, "retention"] if TEACHER in task.models else [name]
    if task.majority:
        header.append("most frequent label")
    rows = []
    for language in next(iter(task.models.values())).languages:
        marked = f"{language} *" if language in (missing_languages or ()) else language
        rows.append(_row(task, marked, {name: m.languages[language] for name, m in task.models.items()}))
        if task.majority:
            rows[-1].append(f"{100 * task.majority[language]:.1f}")
    rows.append(_row(task, "**average**", {name: m.average for name, m in task.models.items()}))
    if task.majority:
        rows[-1].append(f"{100 * sum(task.majority.values()) / len(task.majority):.1f}")
    zero_shot = {name: m.zero_shot for name, m in task.models.items() if m.zero_shot is not None}
    if zero_shot:
        rows.append(_row(task, f"**average without {task.train_language}**", zero_shot))
        if task.majority:
            rows[-1].append("")
    return markdown_table(header, rows)


def method(results: EvaluationResults) -> str:
    """How the scores came about, as a list."""
    asked = results.configuration
    lines = [
        f"- Every model is fine-tuned alike: at most {asked['num_train_epochs']} passes over the training data in "
        f"batches of {asked['train_batch_size']}, stopped after {asked['patience']} without a better score on the "
        "validation set; the weights that were best there are tested. Seeds: "
        f"{', '.join(str(seed) for seed in asked['seeds'])}. ± is the standard deviation over seeds.",
    ]
    if not asked["train_word_embeddings"]:
        lines.append("- Word embeddings are frozen, but for models that start at random.")
    rates = asked["learning_rates"]
    if len(rates) > 1:
        lines.append(
            f"- Learning rate: of {', '.join(f'{rate:g}' for rate in rates)} the best on the validation set with the "
            "first seed, for each model."
        )
    else:
        lines.append(f"- Learning rate: {rates[0]:g} for all models.")
    lines.append("- Retention is the score in percent of the teacher's.")
    if asked["task_distillation"]:
        lines.append(
            f"- {TASK_KD}: the teacher, fine-tuned with the same seed, is distilled into the student on the training "
            f"data ({' '.join(asked['task_losses'])}, temperature {asked['task_temperature']:g})."
        )
    if BASELINE in {name for task in results.tasks.values() for name in task.models}:
        start = "at random" if asked["baseline"] == RANDOM else "from a checkpoint that was trained without a teacher"
        lines.append(f"- {BASELINE}: the student's shape, started {start}.")
    if results.latency_method:
        lines.append(f"- Speed-up: encoders without heads. {results.latency_method}")
    if results.missing_languages:
        lines.append(
            f"- *: not among the languages of the text that the student was distilled on, as its card lists them "
            f"({', '.join(results.missing_languages)})."
        )
    lines.append(f"- Versions: {', '.join(f'{name} {version}' for name, version in results.versions.items())}.")
    return "\n".join(lines)


def plot_scores(results: EvaluationResults, path: Path) -> None:
    """Plot each task's average score against latency, a point for each model whose latency was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * max(len(results.tasks), 1), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, task in zip(
        figure.subplots(1, max(len(results.tasks), 1), squeeze=False)[0], results.tasks.values(), strict=True
    ):
        for number, (name, model) in enumerate(task.models.items()):
            latency = results.latency.get(name)
            if latency is None:
                continue
            axes.errorbar(
                latency["median_ms"], 100 * model.average.mean, yerr=100 * (model.average.std or 0.0),
                fmt="o", color=f"C{number}", capsize=3,
            )  # fmt: skip
            axes.annotate(name, (latency["median_ms"], 100 * model.average.mean), (6, 6), textcoords="offset points")
        axes.set_xscale("log")
        axes.margins(x=0.3, y=0.2)
        axes.set_title(task.task)
        axes.set_xlabel("median latency (ms)")
        axes.set_ylabel(f"{_metric(task)}, mean over languages (%)")
        axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=130)


def _task_section(task: TaskScores, missing_languages: Sequence[str] | None) -> str:
    data = task.data
    lines = [
        f"## {task.task}",
        f"{_metric(task)} in percent. Trained on {data['train']['examples']:,} examples ({data['train']['source']}), "
        f"stopped by {data['validation']['examples']:,} ({data['validation']['source']}).",
        language_table(task, missing_languages),
        _remarks(data),
    ]
    return "\n\n".join(lines)


def _remarks(data: dict) -> str:
    """What a reader must know of the data: what was left out, what does not occur, what is no test set."""
    remarks = []
    parts = {"training": data["train"], "validation": data["validation"], **data["test"]}
    for name, part in parts.items():
        for reason, count in part["omitted"].items():
            remarks.append(f"- Left out of {name}: {count} rows {reason}.")
    if data["absent_labels"]:
        absent = [f"{language} lacks {len(labels)}" for language, labels in data["absent_labels"].items()]
        remarks.append(f"- Of {len(data['labels'])} labels some do not occur in a test set: {', '.join(absent)}.")
    sources = sorted({part["source"] for part in data["test"].values()})
    shown = ", ".join(sources) if len(sources) <= 4 else f"{', '.join(sources[:3])} and {len(sources) - 3} more"
    remarks.append(f"- Tested on {shown}; `results.json` lists the source and size of each set.")
    return "\n".join(remarks)


def _row(task: TaskScores, name: str, spreads: dict[str, Spread]) -> list[str]:
    row = [name, *([_score(spreads[TEACHER])] if TEACHER in spreads else [])]
    for model, spread in spreads.items():
        if model != TEACHER:
            row += [_score(spread), _retention(spread)] if TEACHER in task.models else [_score(spread)]
    return row


def _score(spread: Spread) -> str:
    spreading = "" if spread.std is None else f" ± {100 * spread.std:.1f}"
    return f"{100 * spread.mean:.1f}{spreading}"


def _retention(spread: Spread) -> str:
    return "" if spread.retention is None else f"{spread.retention:.1f} %"


def _speedup(results: EvaluationResults, name: str) -> str:
    latency = results.latency.get(name)
    return "" if latency is None else f"{latency['speedup']:.1f}x"


def _metric(task: TaskScores) -> str:
    return {"f1": "F1", "macro_f1": "macro F1"}.get(task.metric, task.metric)


def _trained(results: EvaluationResults) -> str:
    languages = {task.train_language for task in results.tasks.values()}
    return languages.pop() if len(languages) == 1 else "the trained one"
