"""A downstream task as the quality of a search: what a linear classifier gets from a student's frozen states."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from ..data.labels import IGNORED_LABEL
from .encoding import encode_examples
from .metrics import METRICS
from .task import Example, Task
from .task_data import TaskData, load_task_data

HELDOUT, PROBE = "heldout", "probe"
# Every candidate is probed several times. With so many rows of intents a student of 2 layers, 384 wide, takes 3 s on
# one core, and the choice of rows moves the difference between two students by 0.01 (standard deviation).
MAX_TRAIN, MAX_TEST = 1_000, 1_300
# Inverse penalty of the logistic regression: of 0.001, 0.01 and 0.1 the best for intents and words of WikiANN together.
INVERSE_PENALTY = 0.01
MAX_ITERATIONS = 200


class TaskProbe:
    """The score of a linear classifier on frozen states of a student, in its task's metric: higher is better, 0 to 1.

    A logistic regression is fitted on the training rows, which are of one language, and scored on rows of all: the
    result is the mean over languages. It reads the mean of the last states of a text or of a pair of texts in one
    input; of words it reads the state of the first sub-word. Choose a task that such means can tell apart: of what lies
    between the texts of a pair they hold next to nothing (XNLI: at most 0.37, where guessing gets 0.33).

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
        self._num_train = len(train)
        self._encoded = encode_examples([*train, *chain(*self.test.values())], tokenizer, max_length)
        self._input_ids: list[list[int]] = list(self._encoded.dataset["input_ids"])
        labels = [torch.tensor(label) for label in self._encoded.dataset["labels"]]
        # of each text which tokens are classified, where words are
        self._tokens = None if self._encoded.read_words is None else [label != IGNORED_LABEL for label in labels]
        self._targets = torch.cat([label[label != IGNORED_LABEL].reshape(-1) for label in labels[: len(train)]]).numpy()

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
        features, fitted = np.concatenate(rows), len(self._targets)
        if not np.isfinite(features).all():
            return None
        features = StandardScaler().fit(features[:fitted]).transform(features)
        classifier = LogisticRegression(C=INVERSE_PENALTY, max_iter=MAX_ITERATIONS)
        numbers = classifier.fit(features[:fitted], self._targets).predict(features)
        if self._tokens is not None:
            numbers = np.split(numbers, np.cumsum([len(row) for row in rows])[:-1])
        predicted = iter(self._encoded.name_labels(numbers, self.data.labels)[self._num_train :])
        primary = METRICS[self.data.task.metric].primary
        return statistics.fmean(
            self.data.score(examples, list(islice(predicted, len(examples))))[primary]
            for examples in self.test.values()
        )

    def _features(self, student: PreTrainedModel) -> list[np.ndarray]:
        """The features of each text: ``(1, hidden_size)``, or ``(words, hidden_size)``."""
        found = {}
        for number, states in read_texts(student, self.tokenizer, self._input_ids):
            chosen = states.mean(0, keepdim=True) if self._tokens is None else states[self._tokens[number]]
            found[number] = chosen.double().numpy()
        return [found[number] for number in range(len(found))]


@torch.no_grad()
def read_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[Sequence[int]], batch_size: int = 64
) -> Iterator[tuple[int, torch.Tensor]]:
    """Number and last states ``(tokens, hidden_size)`` of each text, the shortest first, in float32 on the CPU.

    Args:
        model: Without a head, in eval mode.
        tokenizer: Pads the texts.
        input_ids: Of each text.
        batch_size: Texts in a batch, which are of similar length.

    Yields:
        Views of a batch's states, which the caller reduces or copies.
    """
    collate: Any = DataCollatorWithPadding(tokenizer)
    order = sorted(range(len(input_ids)), key=lambda number: len(input_ids[number]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([{"input_ids": input_ids[number]} for number in chosen])
        output = model(**{name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")})
        for number, states in zip(chosen, output.last_hidden_state.float().cpu(), strict=True):
            yield number, states[: len(input_ids[number])]


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
