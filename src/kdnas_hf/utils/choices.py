"""Checks of an argument against the values that it may have."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError, naming the field, the nearest choice and all of them, unless ``value`` is a choice."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown{nearest(value, choices)} Choose from {', '.join(choices)}.")


def nearest(value: object, choices: Iterable[str]) -> str:
    """The end of a sentence that says which choice is like ``value``: ``; did you mean 'gelu'?``, or a full stop."""
    near = difflib.get_close_matches(str(value), list(choices), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def parse_weights(field: str, values: Sequence[str] | str, choices: Iterable[str]) -> dict[str, float]:
    """Weights by name of ``"a:1.0 b:0.5"``, or of a list of such items; a bare name has weight 1.

    Args:
        field: What errors call the argument.
        values: Items separated by spaces or commas.
        choices: The names that there are.

    Raises:
        ValueError: If there is none, one is unknown or named twice, or a weight is not a positive finite number.
    """
    known, weights = list(choices), dict[str, float]()
    # a mapping would iterate as bare names, and its weights would be lost without a word
    if isinstance(values, Mapping) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{field}={values!r} is not text; write <name>:<weight>, as '{known[0]}:0.5'.")
    for item in (values if isinstance(values, str) else " ".join(values)).replace(",", " ").split():
        name, colon, text = item.partition(":")
        if name not in known:
            raise ValueError(f"{field}: {item!r} is unknown{nearest(name, known)} Choose from {', '.join(known)}.")
        if name in weights:
            raise ValueError(f"{field}: {item!r} names {name} a second time; give each once.")
        try:
            weights[name] = float(text) if colon else 1.0
        except ValueError:
            raise ValueError(
                f"{field}: {item!r} is not of the form <name>:<weight>; write it as '{name}:0.5', without spaces."
            ) from None
        if not (math.isfinite(weights[name]) and weights[name] > 0):
            raise ValueError(
                f"{field}: the weight of {item!r} is not a positive finite number; leave out what has none."
            )
    if not weights:
        raise ValueError(f"{field}={values!r} names none; choose from {', '.join(known)}.")
    return weights
