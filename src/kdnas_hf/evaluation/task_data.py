"""Loads a task's labelled examples: from the Hub, from local files, or from the wheels of the extra `demo`."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, load_dataset
from transformers.utils import logging

from ..data import embedded_intents
from ..data.local_files import LocalFile, find_local_files
from ..students.task_heads import TOKEN_CLASSIFICATION
from .metrics import METRICS
from .task import Example, LanguageData, Task

logger = logging.get_logger(__name__)

# of the files of a language, the one to test on: what was never trained on, the nearest to a test set first
TEST_SPLITS = ("test", "dev", "validation", "train")
VALIDATION_SPLITS = ("dev", "validation")
# cut from the training data where there is nothing else to validate or test on
HELDOUT_SHARE = 0.1
MAX_HELDOUT = 1000
# a row whose label is outside the set may be a mistake in one row, or in the task's description
MAX_OMITTED_SHARE = 0.5

_FILE_NAME = re.compile(r"(?P<name>.+?)-(?P<language>[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]+)*)-(?P<split>[a-z]+)\.")


@dataclass
class TaskData:
    """A task's examples.

    Attributes:
        task: The task.
        labels: Its labels in the order of their numbers.
        train: Examples to train on, in the task's training language.
        validation: Examples of the same language that decide when to stop; none of them is tested on.
        test: Examples to test on, by language.
        from_hub: Whether they are the task's splits on the Hub, and no files or others that may differ from them.
    """

    task: Task
    labels: list[str]
    train: LanguageData
    validation: LanguageData
    test: dict[str, LanguageData]
    from_hub: bool = False

    @property
    def absent_labels(self) -> dict[str, list[str]]:
        """For each language that lacks some, the labels that do not occur in its test set."""
        absent = {}
        for language, data in self.test.items():
            found: set[int] = set()
            for example in data.examples:
                found.update(example.label if isinstance(example.label, list) else [example.label])
            missing = [label for number, label in enumerate(self.labels) if number not in found]
            if missing:
                absent[language] = missing
        return absent

    def score(self, examples: Sequence[Example], predicted: Sequence[Any]) -> dict[str, float]:
        """Values of the task's metric, given what `EncodedExamples.name_labels` makes of predicted labels."""
        references = [
            [self.labels[number] for number in e.label] if isinstance(e.label, list) else self.labels[e.label]
            for e in examples
        ]
        computed: Any = METRICS[self.task.metric]().compute(predictions=list(predicted), references=references)
        return {name: float(value) for name, value in computed.items()}

    def fingerprint(self) -> str:
        """What tells these data from others: a hash of all examples, the labels and the metric."""
        parts = [self.train, self.validation, *(self.test[language] for language in sorted(self.test))]
        digest = hashlib.sha256(repr((self.task.metric, self.labels, sorted(self.test))).encode())
        for part in parts:
            digest.update(repr([(e.text, e.text_pair, e.label) for e in part.examples]).encode())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Where every part came from, its size, and what was left out of it."""

        def part(data: LanguageData) -> dict[str, Any]:
            return {"source": data.source, "examples": len(data.examples), "omitted": data.omitted}

        hub = None
        if self.from_hub and self.task.hub is not None:
            configs = {language: self.task.hub.config_of(language) for language in self.test}
            hub = {"dataset": self.task.hub.dataset, "split": self.task.hub.test, "configs": configs}
        return {
            "kind": self.task.kind,
            "hub": hub,
            "labels": self.labels,
            "train": part(self.train),
            "validation": part(self.validation),
            "test": {language: part(data) for language, data in self.test.items()},
            "absent_labels": self.absent_labels,
        }


def load_task_data(
    task: Task,
    data_dir: str | Path | None = None,
    languages: Sequence[str] | None = None,
    max_train_examples: int | None = None,
    max_test_examples: int | None = None,
    seed: int = 0,
    prefer_development: bool = False,
) -> TaskData:
    """Load a task's examples.

    With ``data_dir`` from files ``<name>-<language>-<split>.jsonl`` in it or below, compressed or not; else from the
    extra ``demo`` where the task is embedded, else from the Hub. A language is tested on its test split, else on its
    development split, else, if nothing is trained in it, on its training split. What stops the training early is the
    training language's development split, unless that is tested on; else it is cut from the training data, as is the
    test set of a training language that has none. Rows without text, with a label outside the task's, or with another
    number of labels than words are left out, counted and logged.

    Args:
        task: The task.
        data_dir: A folder of local files.
        languages: Languages to test; by default all that there are.
        max_train_examples: The most examples to train on, a sample drawn by ``seed``.
        max_test_examples: The most examples of each test set: the first rows, so that parallel sets stay parallel.
        seed: Draws the samples.
        prefer_development: Test on development splits where there are any: test splits stay unseen.

    Raises:
        FileNotFoundError: If there is no such folder, or it holds no files of the task.
        ValueError: If a language is not there, a column is missing, or most rows of a set cannot be used.
    """
    rows: _LocalRows | _EmbeddedRows | _HubRows
    if data_dir is not None:
        rows = _LocalRows(task, Path(data_dir), prefer_development)
    elif task.embedded is not None:
        rows = _EmbeddedRows(task)
    else:
        rows = _HubRows(task, prefer_development)
    found = rows.languages()
    wanted = found if languages is None else list(languages)
    missing = [language for language in wanted if language not in found]
    if missing:
        raise ValueError(
            f"languages: {missing[0]!r} has no test data for {task.name} in {rows.where}; there are {', '.join(found)}."
        )
    train_rows, train_source = rows.train()
    names = list(task.labels) if task.labels is not None else _labels_that_occur(task, train_rows)
    train = _examples(task, names, train_rows, train_source)
    rng = random.Random(f"{task.name}/{seed}")
    rng.shuffle(train.examples)

    def cut(purpose: str) -> LanguageData:
        count = max(1, min(MAX_HELDOUT, int(len(train.examples) * HELDOUT_SHARE)))
        if len(train.examples) < 2 * count:
            raise ValueError(f"{task.name}: {train.source} holds too few examples to cut a {purpose} set from.")
        taken, train.examples[:] = train.examples[:count], train.examples[count:]
        return LanguageData(taken, f"rows held out of {train.source}")

    test = {}
    for language in wanted:
        given = rows.test(language)
        if given is None:  # the training language, of which there is nothing but what is trained on
            test[language] = cut("test")
            continue
        test[language] = _examples(task, names, *given)
        if max_test_examples is not None and len(test[language].examples) > max_test_examples:
            test[language].examples = test[language].examples[:max_test_examples]
            test[language].source += f" (its first {max_test_examples} rows)"
    given = rows.validation()
    validation = cut("validation") if given is None else _examples(task, names, *given)
    if max_train_examples is not None and len(train.examples) > max_train_examples:
        train.examples = train.examples[:max_train_examples]
        train.source += f" (a sample of {max_train_examples})"
    from_hub = isinstance(rows, _HubRows) and not prefer_development
    return TaskData(task, names, train, validation, test, from_hub)


Rows = Iterable[Mapping[str, Any]]


class _LocalRows:
    """Rows of local files."""

    def __init__(self, task: Task, folder: Path, prefer_development: bool = False) -> None:
        if task.local is None:
            raise ValueError(f"task {task.name} does not say what its local files are called (local: train, test).")
        if not folder.is_dir():
            raise FileNotFoundError(f"data_dir={str(folder)!r} is no folder.")
        self.task = task
        self.names = task.local
        self.where = str(folder)
        # a stable sort: development splits first, the others as they were
        self.test_splits = sorted(TEST_SPLITS, key=lambda s: prefer_development and s not in VALIDATION_SPLITS)
        self.files: dict[str, dict[str, dict[str, LocalFile]]] = defaultdict(lambda: defaultdict(dict))
        for path in sorted(folder.rglob("*.jsonl*")):
            match = _FILE_NAME.match(path.name)
            # a name may hold a hyphen itself; it is one of the task's
            if match and match["name"] in {*self.names.train, *self.names.test}:
                for file in find_local_files(str(path)) or []:
                    self.files[match["name"]][match["language"]][match["split"]] = file
        self.train_name = next(
            (n for n in self.names.train if "train" in self.files.get(n, {}).get(task.train_language, {})), None
        )
        if self.train_name is None:
            wanted = " or ".join(f"{name}-{task.train_language}-train.jsonl" for name in self.names.train)
            raise FileNotFoundError(f"data_dir={str(folder)!r} holds no {wanted} (compressed or not) to train on.")

    def languages(self) -> list[str]:
        found = {language for name in self.names.test for language in self.files.get(name, {})}
        return sorted(found)

    def _rows(self, file: LocalFile) -> tuple[Rows, str]:
        return file.records(self.task.columns), file.path.name

    def train(self) -> tuple[Rows, str]:
        assert self.train_name is not None
        file = self.files[self.train_name][self.task.train_language]["train"]
        rows, source = self._rows(file)
        return list(rows), source

    def _test_file(self, language: str) -> tuple[str, str] | None:
        for name in self.names.test:
            splits = self.files.get(name, {}).get(language, {})
            for split in self.test_splits:
                trained = split == "train" and language == self.task.train_language
                if split in splits and not trained:
                    return name, split
        return None

    def test(self, language: str) -> tuple[Rows, str] | None:
        found = self._test_file(language)
        return None if found is None else self._rows(self.files[found[0]][language][found[1]])

    def validation(self) -> tuple[Rows, str] | None:
        assert self.train_name is not None
        language = self.task.train_language
        splits = self.files[self.train_name][language]
        tested = self._test_file(language)
        for split in VALIDATION_SPLITS:
            if split in splits and tested != (self.train_name, split):
                return self._rows(splits[split])
        return None


class _EmbeddedRows:
    """Rows of the intents in the extra `demo`."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.where = "the embedded data"
        self.rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in embedded_intents():
            self.rows[row["language"]].append(row)
        # sentences are ordered by label: a sample must not begin with the first labels alone
        for language, rows in self.rows.items():
            random.Random(f"{task.name}/{language}").shuffle(rows)

    def languages(self) -> list[str]:
        return sorted(self.rows)

    def train(self) -> tuple[Rows, str]:
        language = self.task.train_language
        if language not in self.rows:
            raise ValueError(f"train_language={language!r} is not among the embedded data's: {sorted(self.rows)}.")
        return self.rows[language], f"embedded intents ({language})"

    def test(self, language: str) -> tuple[Rows, str] | None:
        if language == self.task.train_language:
            return None
        return self.rows[language], f"embedded intents ({language})"

    def validation(self) -> tuple[Rows, str] | None:
        return None


class _HubRows:
    """Rows of a data set of the Hub."""

    def __init__(self, task: Task, prefer_development: bool = False) -> None:
        if task.hub is None:
            raise ValueError(f"task {task.name} names no data on the Hub (hub: dataset, languages); give a data_dir.")
        self.task = task
        self.hub = task.hub
        self.where = task.hub.dataset
        self.prefer_development = prefer_development

    def languages(self) -> list[str]:
        return sorted(self.hub.languages)

    def _rows(self, language: str, split: str) -> tuple[Rows, str]:
        if language not in self.hub.languages:
            raise ValueError(f"train_language={language!r} is not among the languages of {self.where}.")
        config = self.hub.config_of(language)
        try:
            dataset: Any = load_dataset(self.hub.dataset, config, split=split)
        except Exception as error:
            raise ValueError(
                f"task {self.task.name}: {self.hub.dataset} ({config}, split {split}) cannot be loaded "
                f"({type(error).__name__}: {error}); reach the Hub, or give the task's files in data_dir."
            ) from error
        missing = [column for column in self.task.columns if column not in dataset.column_names]
        if missing:
            raise ValueError(
                f"task {self.task.name}: {self.hub.dataset} has no column {missing[0]!r}; it has "
                f"{', '.join(dataset.column_names)}."
            )
        feature = dataset.features[self.task.label]
        names = _label_names(getattr(feature, "feature", feature))

        def rows() -> Iterator[Mapping[str, Any]]:
            for row in dataset:
                yield {**row, self.task.label: names(row[self.task.label])}

        return rows(), f"{self.hub.dataset} ({config}, {split})"

    def train(self) -> tuple[Rows, str]:
        rows, source = self._rows(self.task.train_language, self.hub.train)
        return list(rows), source

    def test(self, language: str) -> tuple[Rows, str] | None:
        if self.prefer_development:
            with contextlib.suppress(ValueError):  # not all languages have one
                return self._rows(language, self.hub.validation)
        return self._rows(language, self.hub.test)

    def validation(self) -> tuple[Rows, str] | None:
        if self.prefer_development:
            return None  # it is tested on
        return self._rows(self.task.train_language, self.hub.validation)


def _label_names(feature: Any) -> Callable[[Any], Any]:
    """Turns a data set's numbers of labels into their names, where it names them."""
    if not isinstance(feature, ClassLabel):
        return lambda label: label

    def names(label: Any) -> Any:
        if isinstance(label, list):
            return [names(one) for one in label]
        # test sets without labels hold -1
        return feature.names[label] if isinstance(label, int) and 0 <= label < len(feature.names) else label

    return names


def _labels_that_occur(task: Task, rows: Rows) -> list[str]:
    found: set[str] = set()
    for row in rows:
        label = row.get(task.label)
        found.update(str(one) for one in (label if isinstance(label, list) else [label]) if one is not None)
    if len(found) < 2:
        raise ValueError(f"task {task.name}: the training data hold {len(found)} label(s); there must be two or more.")
    return sorted(found)


def _examples(task: Task, names: Sequence[str], rows: Rows, source: str) -> LanguageData:
    """Examples of the rows that can be used; the others are counted by what is wrong with them."""
    numbers: dict[Any, int] = {name: number for number, name in enumerate(names)}
    read = _words_example if task.kind == TOKEN_CLASSIFICATION else _text_example
    examples, omitted = [], Counter[str]()
    for row in rows:
        example = read(task, numbers, row)
        if isinstance(example, str):
            omitted[example] += 1
        else:
            examples.append(example)
    total = len(examples) + sum(omitted.values())
    shown = ", ".join(f"{count} {reason}" for reason, count in sorted(omitted.items()))
    if not total:
        raise ValueError(f"{task.name}: {source} is empty.")
    if sum(omitted.values()) > MAX_OMITTED_SHARE * total:
        raise ValueError(
            f"{task.name}: of {total} rows of {source} most cannot be used ({shown}). The task's labels are "
            f"{', '.join(names)}."
        )
    if omitted:
        logger.warning(f"{task.name}: of {total} rows of {source} were left out: {shown}.")
    return LanguageData(examples, source, dict(sorted(omitted.items())))


EMPTY = "without text"
UNKNOWN_LABEL = "with a label outside the task's"
UNEVEN = "with another number of labels than words"


def _number(label: Any, numbers: Mapping[Any, int]) -> int | None:
    """A label's number, given its name or its number."""
    if isinstance(label, str) and label in numbers:
        return numbers[label]
    if isinstance(label, bool) or label is None:
        return None
    if str(label) in numbers:
        return numbers[str(label)]
    return label if isinstance(label, int) and 0 <= label < len(numbers) else None


def _text_example(task: Task, numbers: Mapping[Any, int], row: Mapping[str, Any]) -> Example | str:
    texts = [row[column] for column in (task.text, task.text_pair) if column is not None]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return EMPTY
    label = _number(row[task.label], numbers)
    if label is None:
        return UNKNOWN_LABEL
    return Example(texts[0].strip(), label, texts[1].strip() if len(texts) > 1 else None)


def _words_example(task: Task, numbers: Mapping[Any, int], row: Mapping[str, Any]) -> Example | str:
    words, labels = row[task.text], row[task.label]
    if not isinstance(words, list) or not any(isinstance(word, str) and word.strip() for word in words):
        return EMPTY
    if not isinstance(labels, list) or len(labels) != len(words):
        return UNEVEN
    found = [_number(label, numbers) for label in labels]
    if any(label is None for label in found):
        return UNKNOWN_LABEL
    # a word without characters has no sub-word, and so no prediction
    kept = [(w, label) for w, label in zip(words, found, strict=True) if isinstance(w, str) and w.strip()]
    return Example([word for word, _ in kept], [label for _, label in kept if label is not None])
