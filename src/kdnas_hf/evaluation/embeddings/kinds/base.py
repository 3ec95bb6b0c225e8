"""What a kind of embedding task is, and the registry by which all others find it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

# roles of texts, which encoders may have prompts for
QUERY = "query"
PASSAGE = "passage"

# similarities that are held at once: queries in a block, times targets
_BLOCK = 2**24


@dataclass(frozen=True)
class Rows:
    """The data of one language.

    Attributes:
        columns: Values by column. Those of a retrieval's corpus have a length of their own.
        source: File or data set and split.
    """

    columns: Mapping[str, list[Any]]
    source: str


class Kind(ABC):
    """What is measured of vectors, by what data.

    A new kind is a subclass with a ``name``, in a file of its own, under `register_kind`.

    Attributes:
        name: Its name in the YAML file of a task.
        metric: The score that encoders are compared by.
        columns: The columns of a row.
        texts: The columns that are encoded, with the role of their texts.
        corpus: The columns of the second file, ``…-corpus``; the first is ``…-queries`` where there are any.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    texts: ClassVar[Mapping[str, str]]
    corpus: ClassVar[tuple[str, ...]] = ()

    def check(self, rows: Rows) -> None:
        """Look at the rows before anything is encoded.

        Raises:
            ValueError: If there is none, or a text is missing, or a value cannot be scored against.
        """
        for column in (*self.columns, *self.corpus):
            if not rows.columns[column]:
                raise ValueError(f"{rows.source} is empty; leave the language out, or give it rows.")
        for column in self.texts:
            for number, text in enumerate(rows.columns[column], start=1):
                if not isinstance(text, str) or not text.strip():
                    raise ValueError(f"{rows.source}, record {number}: {column}={text!r} is no text; take it out.")

    def size(self, rows: Rows) -> int:
        """How many rows are scored."""
        return len(rows.columns[self.columns[0]])

    @abstractmethod
    def contributions(self, rows: Rows, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """What each row contributes to the score, the only thing that is kept of vectors.

        Args:
            rows: The data.
            vectors: By column of ``texts``, the normalised vectors ``(texts, dimension)``.

        Returns:
            An array ``(rows,)`` or ``(rows, values)``.
        """

    @abstractmethod
    def scores(self, rows: Rows, contributions: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
        """The scores by name, ``metric`` among them, of the chosen rows.

        Args:
            rows: The data.
            contributions: What `contributions` gave for all rows.
            chosen: Numbers of rows; one may be there several times, as in a bootstrap.
        """


KINDS: dict[str, Kind] = {}


def register_kind(kind: type[Kind]) -> type[Kind]:
    """Let a kind be found by its name."""
    KINDS[kind.name] = kind()
    return kind


def ranks(queries: np.ndarray, targets: np.ndarray, texts: list[str], right: np.ndarray) -> np.ndarray:
    """The rank of each query's target among all by cosine similarity, 1 being the nearest.

    Targets of the same text are one. Where another is exactly as near as the right one, it counts as nearer: an encoder
    that gives every text the same vector finds nothing.

    Args:
        queries: Normalised vectors ``(queries, dimension)``.
        targets: Normalised vectors ``(targets, dimension)``.
        texts: The targets' texts.
        right: For each query the number of its target.
    """
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    distinct = np.array([numbers[text] for text in texts])
    first = np.unique(distinct, return_index=True)[1]
    found = []
    step = max(1, _BLOCK // len(first))
    for start in range(0, len(queries), step):
        similarities = queries[start : start + step] @ targets[first].T
        own = np.take_along_axis(similarities, distinct[right[start : start + step], None], axis=1)
        found.append((similarities >= own).sum(axis=1))
    return np.concatenate(found)
