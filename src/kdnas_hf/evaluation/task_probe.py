"""A downstream task as the quality of a search: what a linear classifier gets from a student's frozen states."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.labels import IGNORED_LABEL
from .encoding import encode_examples
from .metrics import METRICS
from .probes import read_texts
from .task import Example, Task
from .task_data import TaskData, load_task_data

HELDOUT, PROBE = "heldout", "probe"
# A reading is taken of every candidate, several times. With these the difference of two students has a standard
# deviation of 0.01 by the choice of rows, and reading them takes more of the time than fitting.
MAX_TRAIN = 1_000
MAX_TEST = 1_300
# Inverse penalty of the logistic regression on standardized features. Of 0.001 to 0.1 the one that is near the best
# for intents (42 classes, 809 texts) and for the words of WikiANN alike.
INVERSE_PENALTY = 0.01
MAX_ITERATIONS = 200


class TaskProbe:
    """The score of a linear classifier on frozen states of a student, in its task's metric: higher is better, 0 to 1.

    A logistic regression is fitted on the training rows, which are of one language, and scored on rows of all: the
    result is the mean over languages. It reads the mean of the last states of a text or of a pair of texts in one
    input; of words it reads the state of the first sub-word. A reading depends on ``seed`` and the student alone.

    Args:
        data: The task's data, see `load_probe_data`.
        tokenizer: The students'.
        max_length: Longest example in tokens; the words of what is cut off count as errors.
        max_train: Most training rows that are read, a sample.
        max_test: Most test rows that are read, of all languages together: a sample of equally many of each.
        seed: Draws the samples.

    Attributes:
        label: What reports call this quality.

    Raises:
        ValueError: If the training rows are of one class, or ``max_length`` exceeds what the tokenizer's model takes.
    """

    def __init__(
        self,
        data: TaskData,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        max_train: int = MAX_TRAIN,
        max_test: int = MAX_TEST,
        seed: int = 0,
    ) -> None:
        self.label = f"{data.task.name} probe"
        self.data = data
        self.tokenizer = tokenizer
        share = max(1, max_test // len(data.test))
        train = _sample(data.train.examples, max_train, seed)
        self.test = {language: _sample(part.examples, share, seed) for language, part in data.test.items()}
        _check_classes(data.task.name, train)
        self._train = encode_examples(train, tokenizer, max_length)
        self._test = encode_examples([e for part in self.test.values() for e in part], tokenizer, max_length)
        self._input_ids = [ids for part in (self._train, self._test) for ids in part.dataset["input_ids"]]
        given = [torch.tensor(label) for part in (self._train, self._test) for label in part.dataset["labels"]]
        # of each text which tokens are classified, where words are
        self._tokens = None if self._train.read_words is None else [label != IGNORED_LABEL for label in given]
        labels = given[: len(train)]
        self._targets = torch.cat([label[label != IGNORED_LABEL].reshape(-1) for label in labels]).numpy()

    @classmethod
    def load(
        cls, task: str, tokenizer: PreTrainedTokenizerBase, max_length: int, data_dir: str | Path | None = None
    ) -> Self:
        """The probe of a task, given as `load_probe_data` takes it."""
        return cls(load_probe_data(task, data_dir), tokenizer, max_length)

    def __call__(self, metrics: Mapping[str, float], student: PreTrainedModel) -> float | None:
        """The score of a student; None where its states are not finite.

        Args:
            metrics: Ignored: what losses measured of the student.
            student: Without a head, on any device; its mode is restored, and no gradient is kept.
        """
        with _evaluated(student):
            rows = self._features(student)
        train = np.concatenate(rows[: len(self._train.truncated)])
        test = rows[len(self._train.truncated) :]
        if not all(np.isfinite(row).all() for row in (train, *test)):
            return None
        scale = StandardScaler().fit(train)
        classifier = LogisticRegression(C=INVERSE_PENALTY, max_iter=MAX_ITERATIONS)
        classifier.fit(scale.transform(train), self._targets)
        numbers = classifier.predict(scale.transform(np.concatenate(test)))
        if self._tokens is not None:
            numbers = np.split(numbers, np.cumsum([len(row) for row in test])[:-1])
        return self._mean_score(self._test.name_labels(numbers, self.data.labels))

    def _features(self, student: PreTrainedModel) -> list[np.ndarray]:
        """What is classified of each text: ``(1, hidden_size)``, or ``(words, hidden_size)``."""
        found: dict[int, np.ndarray] = {}
        for number, states in read_texts(student, self.tokenizer, self._input_ids):
            chosen = states.mean(0, keepdim=True) if self._tokens is None else states[self._tokens[number]]
            found[number] = chosen.double().numpy()
        return [found[number] for number in range(len(found))]

    def _mean_score(self, predicted: Sequence[object]) -> float:
        primary, start, scores = METRICS[self.data.task.metric].primary, 0, []
        for examples in self.test.values():
            scores.append(self.data.score(examples, predicted[start : start + len(examples)])[primary])
            start += len(examples)
        return statistics.fmean(scores)


def parse_quality(text: str) -> tuple[str, str | None]:
    """The kind of a quality, and of a probe the task.

    Raises:
        ValueError: If it is neither ``heldout`` nor ``probe:<task>``.
    """
    kind, _, task = text.partition(":")
    if text == HELDOUT or (kind == PROBE and task.strip()):
        return kind, task.strip() or None
    raise ValueError(f"quality={text!r} is unknown; choose {HELDOUT}, or {PROBE}:<task> such as {PROBE}:intents.")


def load_probe_data(task: str, data_dir: str | Path | None = None) -> TaskData:
    """The data of a probe: development rows where a language has some, so that its test rows stay unseen.

    Args:
        task: A preset or a YAML file, as `Task.load` takes it.
        data_dir: A folder of local files, as `load_task_data` takes it.

    Raises:
        FileNotFoundError: If there is no such folder, or it holds no files of the task.
        ValueError: If there is no such task, its data cannot be used, or its training rows are of one class.
    """
    try:
        data = load_task_data(Task.load(task), data_dir, prefer_development=True)
    except (ValueError, FileNotFoundError) as error:
        said = " ".join(str(error).removeprefix("tasks: ").split())
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"quality={PROBE}:{task}: {said}") from error
    _check_classes(task, data.train.examples)
    return data


def _check_classes(task: str, examples: Sequence[Example]) -> None:
    if len({number for example in examples for number in np.atleast_1d(example.label)}) < 2:
        raise ValueError(
            f"quality={PROBE}:{task}: all {len(examples)} training rows are of one class; choose another task, or give "
            "rows of several classes in data_dir."
        )


def _sample(examples: Sequence[Example], size: int, seed: int) -> list[Example]:
    """At most ``size`` examples in their order: the same rows of parts that are parallel."""
    chosen = random.Random(seed).sample(range(len(examples)), min(size, len(examples)))
    return [examples[number] for number in sorted(chosen)]


@contextmanager
def _evaluated(model: PreTrainedModel) -> Iterator[None]:
    """Evaluate inside the block; behind it every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
