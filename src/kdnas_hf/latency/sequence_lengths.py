"""Input lengths of a latency: one, or several with the share of the calls that each has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

# tokens in a text, or weights by tokens
SequenceLengths = int | Mapping[int, float]


def parse_lengths(texts: Sequence[str]) -> dict[int, float]:
    """Weights by tokens of ``["16:3", "128"]``; a length without a weight has 1.

    Raises:
        ValueError: If one is not a length.
    """
    parts = [str(text).partition(":") for text in texts]
    try:
        return {int(tokens): float(weight or 1) for tokens, _, weight in parts}
    except ValueError:
        raise ValueError(f"sequence_length={list(texts)} must be lengths like 128, or 16:3 128:1.") from None


def shares_of(lengths: SequenceLengths) -> dict[int, float]:
    """Shares of the calls by tokens in a text; they sum to 1.

    Raises:
        ValueError: If there is no length, or a length or a weight is not positive.
    """
    given = {lengths: 1.0} if isinstance(lengths, int) else dict(lengths)
    if not given or min(given) < 1:
        raise ValueError(f"sequence_length={lengths} must be at least 1.")
    if not all(0 < weight < math.inf for weight in given.values()):
        raise ValueError(f"sequence_length={lengths} has a weight that is not positive.")
    return {tokens: weight / sum(given.values()) for tokens, weight in given.items()}


def describe_lengths(lengths: SequenceLengths) -> str:
    """The lengths in words: ``128``, or ``16 (75%) / 128 (25%)``."""
    shares = [f"{tokens} ({share:.0%})" for tokens, share in shares_of(lengths).items()]
    return str(lengths) if isinstance(lengths, int) else " / ".join(shares)
