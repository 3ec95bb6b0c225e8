"""Checks of an argument against the values that it may have."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError, naming the field, the nearest choice and all of them, unless ``value`` is a choice."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown{nearest(value, choices)} Choose from {', '.join(choices)}.")


def nearest(value: object, choices: Iterable[str]) -> str:
    """The end of a sentence that says which choice is like ``value``: ``; did you mean 'gelu'?``, or a full stop."""
    near = difflib.get_close_matches(str(value), list(choices), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."
