"""The scores of an evaluation of embedders, and what people read of them: ``embeddings.json`` and ``embeddings.md``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...utils.atomic_files import write_atomically
from ...utils.json_lines import JsonRecord
from ...utils.markdown_table import markdown_table
from .bootstrap import LEVEL, Estimate

RESULTS_FILE = "embeddings.json"
REPORT_FILE = "embeddings.md"


@dataclass(frozen=True)
class EmbeddingRecord(JsonRecord):
    """One encoder on one language of one task.

    Attributes:
        encoder: What the encoder is called.
        fingerprint: Of the vectors of some texts of each column: those of other weights are not this encoder's.
        task: Name of the task.
        language: The language.
        data: Fingerprint of the rows.
        contributions: What each row contributes to the score, as the task's kind says.
    """

    encoder: str
    fingerprint: str
    task: str
    language: str
    data: str
    contributions: list[Any]


@dataclass(frozen=True)
class EncoderScores:
    """What one encoder reached on one task.

    Attributes:
        languages: The metric by language.
        average: Its mean over the languages.
        details: All scores by language, those that are not compared among them.
        shares: By language, the share of the teacher's score; None where the teacher has none.
        average_share: The share of the teacher's average.
        below: The languages whose share is below the one that was asked for.
    """

    languages: dict[str, Estimate]
    average: Estimate
    details: dict[str, dict[str, float]]
    shares: dict[str, Estimate | None]
    average_share: Estimate | None
    below: list[str]


@dataclass(frozen=True)
class EmbeddingTaskScores:
    """What every encoder reached on one task.

    Attributes:
        kind: Its kind.
        metric: The score that is compared.
        data: By language, ``source`` and number of ``rows``.
        encoders: By name, the teacher first.
    """

    kind: str
    metric: str
    data: dict[str, dict[str, Any]]
    encoders: dict[str, EncoderScores]


@dataclass(frozen=True)
class EmbeddingResults:
    """All that an evaluation of embedders found.

    Attributes:
        tasks: By name.
        teacher: The encoder that the others are compared with.
        min_share: Share of the teacher's score below which a language is named.
        resamples: Resamples of the bootstrap.
        seed: What they are drawn from.
        widths: Dimension of each encoder's vectors.
        versions: Of the libraries.
    """

    tasks: dict[str, EmbeddingTaskScores]
    teacher: str
    min_share: float
    resamples: int
    seed: int
    widths: dict[str, int]
    versions: dict[str, str]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EmbeddingResults:
        """Read what `dataclasses.asdict` gave, also after a way through JSON.

        Raises:
            KeyError, TypeError: If it is something else.
        """

        def estimate(given: Mapping[str, float] | None) -> Estimate | None:
            return None if given is None else Estimate(**given)

        def encoder(given: Mapping[str, Any]) -> EncoderScores:
            nested = {n: {k: estimate(v) for k, v in given[n].items()} for n in ("languages", "shares")}
            averages = {name: estimate(given[name]) for name in ("average", "average_share")}
            return EncoderScores(**{**given, **nested, **averages})

        def task(given: Mapping[str, Any]) -> EmbeddingTaskScores:
            encoders = {name: encoder(one) for name, one in given["encoders"].items()}
            return EmbeddingTaskScores(**{**given, "encoders": encoders})

        return cls(**{**values, "tasks": {name: task(one) for name, one in values["tasks"].items()}})

    def save(self, folder: Path) -> None:
        """Write ``embeddings.json`` and ``embeddings.md``."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(folder / RESULTS_FILE, text + "\n")
        write_atomically(folder / REPORT_FILE, self.report() + "\n")

    def report(self) -> str:
        """Everything as Markdown."""
        sections = ["# Sentence vectors", self.summary()]
        sections += [f"## {name}\n\n{self.language_table(task)}" for name, task in self.tasks.items()]
        lines = [
            "All vectors are as the encoders give them, nothing is trained. Scores are in percent; in brackets, what "
            f"{LEVEL} % of {self.resamples:,} resamples of the rows give (seed {self.seed}).",
            "The resamples are the same for every encoder, so a share is surer than the two scores that it is made of.",
        ]
        used = sorted({source["source"] for task in self.tasks.values() for source in task.data.values()})
        shown = ", ".join(used[:4]) + (f" and {len(used) - 4} more" if len(used) > 4 else "")
        lines.append(f"Data: {shown}; `{RESULTS_FILE}` lists them all.")
        lines.append(f"Versions: {', '.join(f'{name} {version}' for name, version in self.versions.items())}.")
        return "\n\n".join([*sections, "## How it was measured\n\n" + "\n".join(f"- {line}" for line in lines)])

    def summary(self) -> str:
        """A table with a line for each task and encoder."""
        rows = []
        for name, task in self.tasks.items():
            for encoder, scores in task.encoders.items():
                about = f"{name} ({task.metric}, {_counted(len(task.data))})"
                below = "" if encoder == self.teacher else ", ".join(scores.below) or "none"
                share = "" if encoder == self.teacher else _percent(scores.average_share)
                width = str(self.widths.get(encoder, ""))
                rows.append([about, encoder, width, _percent(scores.average), share, below])
        header = ["task", "encoder", "dimension", "average", f"of {self.teacher}'s"]
        return markdown_table([*header, f"languages below {100 * self.min_share:g} %"], rows)

    def language_table(self, task: EmbeddingTaskScores) -> str:
        """A table of one task with a line for each language."""
        others = [name for name in task.encoders if name != self.teacher]
        header = ["language", "rows", self.teacher]
        for name in others:
            header += [name, f"of {self.teacher}'s"]

        def row(label: str, size: str, scores: Mapping[str, tuple[Estimate, Estimate | None]]) -> list[str]:
            cells = [label, size, _percent(scores[self.teacher][0])]
            for name in others:
                cells += [_percent(scores[name][0]), _percent(scores[name][1])]
            return cells

        rows = [
            row(
                language,
                str(about["rows"]),
                {name: (s.languages[language], s.shares[language]) for name, s in task.encoders.items()},
            )
            for language, about in task.data.items()
        ]
        rows.append(row("**average**", "", {n: (s.average, s.average_share) for n, s in task.encoders.items()}))
        return markdown_table(header, rows)


def _counted(languages: int) -> str:
    return f"{languages} language" + ("s" if languages > 1 else "")


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "no share"
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
