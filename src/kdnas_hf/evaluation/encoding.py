"""Tokenises labelled examples; a word's label goes to its first sub-word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..data.labels import IGNORED_LABEL
from .metrics import UNREAD
from .task import Example


@dataclass(frozen=True)
class EncodedExamples:
    """Examples as a model reads them.

    Attributes:
        dataset: ``input_ids`` and ``labels`` (a number, or one for each token with -100 where there is none) and
            ``length``, in the order of the examples.
        read_words: Of word-level examples, the positions of the words that have a labelled sub-word.
        truncated: Of each text, whether it was longer than ``max_length``.
        unread: Of each text, how many words have no labelled sub-word: they were cut off, or consist of nothing that
            the tokenizer knows.
    """

    dataset: Dataset
    read_words: list[list[int]] | None
    truncated: list[bool]
    unread: list[int]

    def name_labels(self, numbers: Sequence[Any] | np.ndarray, labels: Sequence[str]) -> list[Any]:
        """Names of predicted labels in the order of the examples: one for each text, or a list with one for each word.

        A word that the model did not read is `metrics.UNREAD`, which is never right.

        Args:
            numbers: For each text the number of its label, or the numbers of its words that were read.
            labels: The names by number.
        """
        if self.read_words is None:
            return [labels[int(number)] for number in numbers]
        named = []
        for read, unread, row in zip(self.read_words, self.unread, numbers, strict=True):
            names = [UNREAD] * (len(read) + unread)
            for word, number in zip(read, row, strict=True):
                names[word] = labels[int(number)]
            named.append(names)
        return named


def encode_examples(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> EncodedExamples:
    """Tokenise examples of one kind.

    Args:
        examples: All with words, or all with texts.
        tokenizer: A fast tokenizer.
        max_length: Longest sequence in tokens, with special tokens. Of a pair the longer text is cut first.

    Raises:
        ValueError: If ``max_length`` exceeds what the tokenizer's model takes, or the tokenizer is not a fast one.
    """
    if max_length > tokenizer.model_max_length:
        raise ValueError(
            f"max_length={max_length} exceeds the model_max_length={tokenizer.model_max_length} of the tokenizer."
        )
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer; words cannot be aligned with it.")
    if not examples:
        raise ValueError("there are no examples to encode.")
    words = isinstance(examples[0].text, list)
    pairs = examples[0].text_pair is not None
    encoded = tokenizer(
        [example.text for example in examples],
        [example.text_pair for example in examples] if pairs else None,
        is_split_into_words=words,
        truncation="longest_first",
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_overflowing_tokens=False,
        verbose=False,
    )
    input_ids = encoded["input_ids"]
    labels: list[int | list[int]] = []
    read_words: list[list[int]] = []
    for number, example in enumerate(examples):
        if not isinstance(example.label, list):
            labels.append(example.label)
            continue
        token_labels, read = [], []
        before = None
        for word in encoded.word_ids(number):
            first = word is not None and word != before
            token_labels.append(example.label[word] if first else IGNORED_LABEL)
            if first:
                read.append(word)
            before = word
        labels.append(token_labels)
        read_words.append(read)
    dataset = Dataset.from_dict({"input_ids": input_ids, "labels": labels, "length": [len(ids) for ids in input_ids]})
    return EncodedExamples(
        dataset=dataset,
        read_words=read_words if words else None,
        truncated=[bool(encoded[number].overflowing) for number in range(len(examples))],
        unread=[len(e.text) - len(r) for e, r in zip(examples, read_words, strict=True)]
        if words
        else [0] * len(examples),
    )
