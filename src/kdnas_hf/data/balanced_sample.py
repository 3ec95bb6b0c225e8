"""Collects distinct sentences, or a sample of bounded size in which every language has the same share if it can."""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Sentence:
    """A sentence and its language (BCP 47), if known."""

    text: str
    language: str | None


class DistinctSentences:
    """Keeps the first occurrence of every sentence, up to a limit.

    Of a sentence that was seen only 8 bytes of a hash are remembered.

    Args:
        limit: The most sentences to keep, or `None` for all.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._seen: set[int] = set()
        self._sentences: list[Sentence] = []

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self._limit is not None and len(self._sentences) >= self._limit

    def add(self, sentence: Sentence, stratum: str) -> None:
        """Keeps the sentence, unless it was seen before or the limit is reached."""
        key = _hash(sentence.text)
        if key not in self._seen and not self.full:
            self._seen.add(key)
            self._sentences.append(sentence)

    def __iter__(self) -> Iterator[Sentence]:
        return iter(self._sentences)


class BalancedSample:
    """Draws distinct sentences so that no stratum has more than another, unless the other has no more to give.

    In one pass and in memory for `size` sentences: each sentence has a pseudo-random rank (its hash), a stratum keeps
    those of the lowest ranks, and whenever the sample grows too large, the largest stratum gives up its highest. The
    same sentences in the same order give the same sample, in any process.

    Args:
        size: The most sentences to keep.
    """

    full = False  # a later sentence may always have a lower rank

    def __init__(self, size: int) -> None:
        self._size = size
        self._largest = 0
        self._strata: dict[str, list[tuple[int, int, Sentence]]] = defaultdict(list)
        self._kept: set[int] = set()
        self._position = 0

    def add(self, sentence: Sentence, stratum: str) -> None:
        """Takes the sentence into the sample, if its rank is low enough and no other occurrence is there.

        Args:
            sentence: The sentence.
            stratum: Its language, or what else should be balanced.
        """
        rank = _hash(sentence.text)
        heap = self._strata[stratum]
        if rank in self._kept:
            return
        sample_is_full = len(self._kept) >= self._size
        if sample_is_full and len(heap) >= self._largest and rank > -heap[0][0]:
            return  # it would be the first to be given up; most sentences of a large corpus end here
        # A heap gives its smallest item: with ranks negated that is the one to give up first.
        heapq.heappush(heap, (-rank, self._position, sentence))
        self._kept.add(rank)
        self._position += 1
        if sample_is_full:
            given_up, _, _ = heapq.heappop(max(self._strata.values(), key=len))
            self._kept.discard(-given_up)
            self._largest = max(map(len, self._strata.values()))
        else:
            self._largest = max(self._largest, len(heap))

    def __iter__(self) -> Iterator[Sentence]:
        items = [item for heap in self._strata.values() for item in heap]
        return (sentence for _, _, sentence in sorted(items, key=lambda item: item[1]))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
