"""Scores encoders on embedding tasks next to their teacher, resumed where it was interrupted."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ...utils.json_lines import JsonLines
from ...utils.package_versions import package_versions
from ...utils.run_directory import check_writable
from .bootstrap import Resampled
from .data import EmbeddingData
from .encoder import Encoder, EncoderVectors
from .results import EmbeddingRecord, EmbeddingResults, EmbeddingTaskScores, EncoderScores

LEDGER_FILE = "embeddings.jsonl"
RESAMPLES = 1000
TEACHER_INDEX = "{name} in the teacher's index"


def evaluate_embedders(
    encoders: Mapping[str, Encoder],
    tasks: Sequence[EmbeddingData],
    folder: str | Path,
    teacher: str = "teacher",
    teacher_index: Sequence[str] = (),
    min_share: float = 0.9,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> EmbeddingResults:
    """Score encoders on embedding tasks, next to the one that they learnt from.

    Each encoder's language of a task is on the disk the moment it is measured (``embeddings.jsonl``); started again,
    only what is missing is measured. What was measured of other vectors or other data does not count.

    Args:
        encoders: Encoders by name, the teacher among them; further baselines as you like.
        tasks: The tasks with their data, see `load_embedding_data`.
        folder: Where ``embeddings.json``, ``embeddings.md`` and the measurements are left.
        teacher: Name of the encoder that the others are compared with.
        teacher_index: Names of encoders whose queries are looked up among the teacher's vectors as well, in tasks that
            have a corpus.
        min_share: Share of the teacher's score below which a language is named.
        resamples: Resamples of the bootstrap that gives the intervals.
        seed: What they are drawn from.

    Raises:
        ValueError: If an argument is impossible, an encoder gives no vectors, or those of ``teacher_index`` are of
            another width than the teacher's.
    """
    _check(encoders, tasks, teacher, teacher_index, min_share, resamples)
    folder = Path(folder)
    check_writable(folder)
    # the teacher first: its vectors are there when others look things up among them
    names = sorted(encoders, key=lambda name: name != teacher)
    vectors = {name: EncoderVectors(name, encoders[name]) for name in names}
    for name in teacher_index:
        if vectors[name].width != vectors[teacher].width:
            raise ValueError(
                f"teacher_index: the vectors of {name} have {vectors[name].width} dimensions, those of {teacher} "
                f"{vectors[teacher].width}; give {name} a projection to the teacher's, or leave it out."
            )
    ledger = JsonLines(folder / LEDGER_FILE, EmbeddingRecord.from_json)
    known = ledger.read()
    ledger.set_to(known)  # without a torn last line
    pairs: Pairs = {name: (vectors[name], vectors[name]) for name in names}
    crossed = {TEACHER_INDEX.format(name=name): (vectors[name], vectors[teacher]) for name in teacher_index}
    scores = {}
    for data in tasks:
        chosen = {**pairs, **(crossed if data.task.measured.corpus else {})}
        contributions = _contributions(data, chosen, ledger, known)
        scores[data.task.name] = _task_scores(data, contributions, teacher, min_share, resamples, seed)
        for one in vectors.values():
            one.forget()
    results = EmbeddingResults(
        tasks=scores,
        teacher=teacher,
        min_share=min_share,
        resamples=resamples,
        seed=seed,
        widths={name: one.width for name, one in vectors.items()},
        versions=package_versions("numpy", "scipy", "scikit-learn", "torch", "transformers", "sentence-transformers"),
    )
    results.save(folder)
    return results


# by name, an encoder and that of the corpus
Pairs = Mapping[str, tuple[EncoderVectors, EncoderVectors]]


def _contributions(
    data: EmbeddingData, pairs: Pairs, ledger: JsonLines[EmbeddingRecord], known: Sequence[EmbeddingRecord]
) -> dict[str, dict[str, np.ndarray]]:
    """What each row contributes, by encoder and language; measured and put into the ledger where it is not known."""
    kind, task = data.task.measured, data.task.name
    before = {(r.encoder, r.fingerprint, r.language, r.data): r.contributions for r in known if r.task == task}
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in pairs}
    progress = tqdm(total=len(pairs) * len(data.languages), desc=f"Encoding {task}", unit="language")
    with progress:
        for (language, rows), (name, (encoder, corpus)) in itertools.product(data.languages.items(), pairs.items()):
            read = {
                column: (corpus if column in kind.corpus else encoder, rows.columns[column], role)
                for column, role in kind.texts.items()
            }
            where = f"{task}, {language}"
            fingerprint = "+".join(reader.fingerprint(texts, role, where) for reader, texts, role in read.values())
            key = (name, fingerprint, language, data.fingerprint(language))
            if key not in before:
                vectors = {column: reader.of(texts, role, where) for column, (reader, texts, role) in read.items()}
                before[key] = kind.contributions(rows, vectors).tolist()
                ledger.append(EmbeddingRecord(name, fingerprint, task, language, key[3], before[key]))
            found[name][language] = np.array(before[key])
            progress.update()
    return found


def _check(
    encoders: Mapping[str, Encoder],
    tasks: Sequence[EmbeddingData],
    teacher: str,
    teacher_index: Sequence[str],
    min_share: float,
    resamples: int,
) -> None:
    if teacher not in encoders:
        raise ValueError(f"teacher={teacher!r} is none of the encoders {', '.join(encoders)}; name one of them.")
    for name in teacher_index:
        if name not in encoders or name == teacher:
            others = ", ".join(other for other in encoders if other != teacher)
            raise ValueError(f"teacher_index: {name!r} is no encoder beside the teacher; choose from {others}.")
    names = [data.task.name for data in tasks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"tasks={names} must be one or several different ones.")
    if min_share <= 0:
        raise ValueError(f"min_share={min_share} must be positive, as 0.9.")
    if resamples < 1:
        raise ValueError(f"resamples={resamples} must be at least 1.")


def _task_scores(
    data: EmbeddingData,
    contributions: Mapping[str, Mapping[str, np.ndarray]],
    teacher: str,
    min_share: float,
    resamples: int,
    seed: int,
) -> EmbeddingTaskScores:
    kind = data.task.measured
    found = {
        name: {
            language: Resampled.of(kind, rows, by_language[language], resamples, seed)
            for language, rows in data.languages.items()
        }
        for name, by_language in contributions.items()
    }
    means = {name: Resampled.mean(list(scores.values())) for name, scores in found.items()}
    encoders = {}
    for name, scores in found.items():
        shares = {language: score.share_of(found[teacher][language]) for language, score in scores.items()}
        encoders[name] = EncoderScores(
            languages={language: score.estimate() for language, score in scores.items()},
            average=means[name].estimate(),
            details={
                language: kind.scores(rows, contributions[name][language], np.arange(kind.size(rows)))
                for language, rows in data.languages.items()
            },
            shares=shares,
            average_share=means[name].share_of(means[teacher]),
            below=[language for language, share in shares.items() if share is not None and share.value < min_share],
        )
    about = {language: {"source": rows.source, "rows": kind.size(rows)} for language, rows in data.languages.items()}
    return EmbeddingTaskScores(data.task.kind, kind.metric, about, encoders)
