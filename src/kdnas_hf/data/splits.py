"""Splits a corpus into training text, the proxy set that candidates are trained on, and held-out text."""

from __future__ import annotations

import hashlib
import random
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from datasets import Dataset


@dataclass(frozen=True)
class CorpusSplits:
    """The parts of a corpus.

    Attributes:
        train: Text for the full distillation; it shares no sentence with `heldout`, nor one that differs from it only
            in case, punctuation, digits or spaces.
        proxy: The part of `train` that candidates are distilled on during search.
        heldout: Text on which distillation is measured.
    """

    train: Dataset
    proxy: Dataset
    heldout: Dataset


def split_corpus(corpus: Dataset, heldout_sentences: int, proxy_fraction: float, seed: int) -> CorpusSplits:
    """Splits a corpus; the same corpus and seed give the same splits.

    Held-out text and proxy set have the corpus's languages in its proportions (by largest remainders), if it has a
    column `language`. Sentences that are too much like a held-out one are in no split.

    Args:
        corpus: A dataset with a column `text`, and possibly `language`.
        heldout_sentences: How many sentences to hold out; no two of them are equal but for case, punctuation, digits
            and spaces.
        proxy_fraction: The proxy set's share of the training text, in (0, 1]; 0.3 in KD-NAS (arXiv 2303.09639).
        seed: Seed of the draw.

    Returns:
        The splits, each in the corpus's order and with its columns.

    Raises:
        ValueError: An argument is out of range, or the corpus is too small: less than half of its (sufficiently
            different) sentences would remain for training.
    """
    if "text" not in corpus.column_names:
        raise ValueError(f"The corpus has no column 'text'; its columns are {corpus.column_names}.")
    if heldout_sentences < 1:
        raise ValueError(f"heldout_sentences={heldout_sentences} must be at least 1.")
    if not 0.0 < proxy_fraction <= 1.0:
        raise ValueError(f"proxy_fraction={proxy_fraction} must be greater than 0 and at most 1.")
    keys = [_similarity_key(text) for text in corpus["text"]]
    distinct = len(set(keys))
    if heldout_sentences * 2 > distinct:
        raise ValueError(
            f"heldout_sentences={heldout_sentences} is more than half of the corpus, which has {distinct} sentences "
            f"that differ in more than case, punctuation, digits and spaces ({len(keys)} in all). Lower "
            f"heldout_sentences to at most {distinct // 2}, or use a corpus of at least {2 * heldout_sentences}."
        )
    languages = corpus["language"][:] if "language" in corpus.column_names else [None] * len(corpus)
    rng = random.Random(f"split/{seed}")

    candidates = _representatives(keys, languages, rng)
    heldout = _draw(candidates, heldout_sentences, rng)
    heldout_keys = {keys[row] for row in heldout}
    train = [row for row, key in enumerate(keys) if key not in heldout_keys]
    if not train:
        raise ValueError(f"Nothing of {len(keys)} sentences is left for training beside {heldout_sentences} held out.")

    rows_by_language: dict[str | None, list[int]] = defaultdict(list)
    for row in train:
        rows_by_language[languages[row]].append(row)
    proxy = _draw(rows_by_language, max(1, round(proxy_fraction * len(train))), rng)
    return CorpusSplits(train=corpus.select(train), proxy=corpus.select(proxy), heldout=corpus.select(heldout))


def _representatives(
    keys: Sequence[int], languages: Sequence[str | None], rng: random.Random
) -> dict[str | None, list[int]]:
    """Returns one row of every group of similar sentences, by language, drawn at random."""
    order = list(range(len(keys)))
    rng.shuffle(order)
    row_of_key: dict[int, int] = {}
    for row in order:
        row_of_key.setdefault(keys[row], row)
    rows_by_language: dict[str | None, list[int]] = defaultdict(list)
    for row in sorted(row_of_key.values()):
        rows_by_language[languages[row]].append(row)
    return rows_by_language


def _draw(rows_by_stratum: Mapping[str | None, Sequence[int]], size: int, rng: random.Random) -> list[int]:
    """Draws rows from the strata in proportion to their sizes, and returns them in ascending order."""
    strata = sorted(rows_by_stratum, key=lambda stratum: (stratum is not None, stratum or ""))
    sizes = _largest_remainders([len(rows_by_stratum[stratum]) for stratum in strata], size)
    drawn: list[int] = []
    for stratum, number in zip(strata, sizes, strict=True):
        drawn.extend(rng.sample(rows_by_stratum[stratum], number))
    return sorted(drawn)


def _largest_remainders(weights: Sequence[int], seats: int) -> list[int]:
    """Divides seats in proportion to the weights (Hamilton's method): at most the weight itself, since seats ≤ sum."""
    total = sum(weights)
    quotas = [Fraction(weight * seats, total) for weight in weights]
    shares = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(weights)), key=lambda index: (shares[index] - quotas[index], index))
    for index in by_remainder[: seats - sum(shares)]:
        shares[index] += 1
    return shares


class _DropNonLetters(dict[int, int | None]):
    """A translation table that drops punctuation, symbols, digits and spaces, filled as characters occur."""

    def __missing__(self, code_point: int) -> int | None:
        dropped = unicodedata.category(chr(code_point))[0] in "PSNZC"
        self[code_point] = None if dropped else code_point
        return self[code_point]


_DROP_NON_LETTERS = _DropNonLetters()


def _similarity_key(text: str) -> int:
    """Returns 8 bytes that are equal for texts that differ only in case, punctuation, digits and spaces.

    Marks (vowel signs of Indic scripts, say) count as letters. A text without any letter stands for itself.
    """
    letters = text.casefold().translate(_DROP_NON_LETTERS) or text
    return int.from_bytes(hashlib.blake2b(letters.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
