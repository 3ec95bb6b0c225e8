"""Loads the unlabelled text that `DataArguments` describe into one dataset of distinct sentences."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Features, Value, concatenate_datasets, load_dataset, load_dataset_builder
from tqdm.auto import tqdm
from transformers.utils import logging

from .arguments import DataArguments
from .balanced_sample import BalancedSample, DistinctSentences, Sentence
from .embedded_text import embedded_sentences
from .local_files import (
    LANGUAGE_COLUMN,
    LocalFile,
    check_column,
    find_local_files,
    language_of,
    text_of_record,
)

logger = logging.get_logger(__name__)

EMBEDDED = "embedded"

_ROWS_PER_CHUNK = 100_000
_FEATURES = Features({"text": Value("string"), "language": Value("string")})


@dataclass(frozen=True)
class _EmbeddedSource:
    """The wheels of the extra `demo`."""

    name: str = EMBEDDED

    def check(self) -> None:
        """Needs no check: an error comes at once."""

    def sentences(self) -> Iterator[tuple[str, str | None]]:
        sentences = embedded_sentences()
        yield from zip(sentences["text"], sentences["language"], strict=True)


@dataclass(frozen=True)
class _FileSource:
    """One local file."""

    file: LocalFile
    text_column: str

    @property
    def name(self) -> str:
        return str(self.file.path)

    def check(self) -> None:
        self.file.check(self.text_column)

    def sentences(self) -> Iterator[tuple[str, str | None]]:
        return self.file.sentences(self.text_column)


@dataclass(frozen=True)
class _HubSource:
    """A dataset that `datasets` loads by name, from the Hub or from a directory."""

    name: str
    config: str | None
    split: str
    text_column: str
    streaming: bool

    def check(self) -> None:
        """Asks for what can be known of the dataset without downloading it."""
        try:
            info = load_dataset_builder(self.name, self.config).info
        except Exception as error:
            raise self._cannot_load(error) from error
        wanted = re.match(r"\w+", self.split)
        if info.splits and wanted and wanted.group() not in (*info.splits, "all"):
            raise ValueError(f"{self.name} has no dataset_split={self.split!r}; its splits are {sorted(info.splits)}.")
        if info.features:
            self._check_features(info.features)

    def sentences(self) -> Iterator[tuple[str, str | None]]:
        try:
            dataset: Any = load_dataset(self.name, self.config, split=self.split, streaming=self.streaming)
        except Exception as error:
            raise self._cannot_load(error) from error
        if dataset.features:
            self._check_features(dataset.features)
            unread = [name for name in dataset.features if name not in (self.text_column, LANGUAGE_COLUMN)]
            dataset = dataset.remove_columns(unread)
        for record in dataset:
            yield text_of_record(record, self.text_column, self.name), language_of(record)

    def _check_features(self, features: Features) -> None:
        check_column(self.text_column, features, self.name)
        feature = features[self.text_column]
        if getattr(feature, "dtype", None) not in ("string", "large_string", "string_view"):
            raise ValueError(f"{self.name}: text_column={self.text_column!r} holds {feature} and not text.")

    def _cannot_load(self, error: Exception) -> ValueError:
        return ValueError(
            f"dataset={self.name!r} (dataset_config={self.config!r}, dataset_split={self.split!r}) cannot be loaded: "
            f"{type(error).__name__}: {error}"
        )


_Source = _EmbeddedSource | _FileSource | _HubSource


def load_corpus(args: DataArguments) -> Dataset:
    """Loads the text that the arguments describe.

    Every source is checked before the first is read. Sentences are stripped; empty ones, and all but the first of equal
    ones, are dropped. Under `max_sentences` the corpus is a sample, balanced over the languages (over the sources,
    where languages are unknown), which needs memory for the sample only; of streamed datasets it is instead what they
    begin with, in equal parts. The result is held in memory, and is the same in every run.

    Args:
        args: What to load. Each entry of `args.dataset` is `"embedded"`, a path or glob of local files, or a dataset's
            name on the Hub. A plain text file named after a language (`de.txt`, `zh-Hant.txt.xz`) tells that language;
            other formats tell it in a column `language`.

    Returns:
        A dataset with the column `text` and, if the language of any sentence is known, `language` (BCP 47; null where
        it is not).

    Raises:
        FileNotFoundError: A path or glob matches no file.
        ValueError: The text column is missing (the message names those that there are) or holds no text, a dataset, its
            configuration or its split cannot be loaded, a file cannot be read, or nothing is left.
        ImportError: A wheel of the embedded text is not installed.
    """
    sources = _resolve_sources(args)
    for source in sources:
        source.check()
    if args.max_sentences is None:
        collected: DistinctSentences | BalancedSample = DistinctSentences()
    elif any(isinstance(source, _HubSource) and source.streaming for source in sources):
        collected = DistinctSentences(args.max_sentences)
    else:
        collected = BalancedSample(args.max_sentences)
    if isinstance(collected, DistinctSentences) and args.max_sentences is not None:
        _collect_in_turns(sources, collected)
    else:
        for source in tqdm(sources, desc="Reading text", unit="source", disable=len(sources) == 1):
            for sentence in _clean_sentences(source):
                collected.add(sentence, stratum=sentence.language or source.name)
    corpus = _to_dataset(collected)
    if not len(corpus):
        raise ValueError(f"dataset={args.dataset} holds no text: every line, or every {args.text_column!r}, is empty.")
    logger.info(f"Loaded {len(corpus)} distinct sentences from {len(sources)} sources.")
    return corpus


def _resolve_sources(args: DataArguments) -> list[_Source]:
    sources: list[_Source] = []
    for name in args.dataset:
        if name == EMBEDDED:
            sources.append(_EmbeddedSource())
            continue
        files = find_local_files(name)
        if files is None:
            sources.append(_HubSource(name, args.dataset_config, args.dataset_split, args.text_column, args.streaming))
        else:
            sources.extend(_FileSource(file, args.text_column) for file in files)
    return list(dict.fromkeys(sources))


def _collect_in_turns(sources: list[_Source], collected: DistinctSentences) -> None:
    """Takes a sentence from each source in turn, from its beginning, until there are enough or no more."""
    streams = [(source.name, _clean_sentences(source)) for source in sources]
    while streams and not collected.full:
        going_on = []
        for name, stream in streams:
            sentence = next(stream, None)
            if sentence is not None:
                collected.add(sentence, stratum=name)
                going_on.append((name, stream))
        streams = going_on


def _clean_sentences(source: _Source) -> Iterator[Sentence]:
    for text, language in source.sentences():
        stripped = text.strip()
        if stripped:
            yield Sentence(stripped, language)


def _to_dataset(sentences: Iterable[Sentence]) -> Dataset:
    chunks = []
    known_language = False
    iterator = iter(sentences)
    while chunk := list(itertools.islice(iterator, _ROWS_PER_CHUNK)):
        known_language = known_language or any(sentence.language for sentence in chunk)
        columns = {
            "text": [sentence.text for sentence in chunk],
            "language": [sentence.language for sentence in chunk],
        }
        chunks.append(Dataset.from_dict(columns, features=_FEATURES))
    if not chunks:
        return Dataset.from_dict({"text": []}, features=Features({"text": Value("string")}))
    corpus = concatenate_datasets(chunks)
    return corpus if known_language else corpus.remove_columns("language")
