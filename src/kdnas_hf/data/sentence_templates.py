"""Samples sentences from the templates in which Home Assistant writes what people may say (the hassil grammar).

`(a|b)` is a choice, `[a]` an optional part, `(a;b)` both parts in any order, `<rule>` another template by name,
`{slot}` or `{slot:role}` one of a slot's values, and a backslash takes the next character literally.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_CLOSING = {"(": ")", "[": "]"}


class TemplateSyntaxError(ValueError):
    """A template has an unbalanced bracket or an unfinished reference."""


class Phrase(ABC):
    """A part of a template of which texts can be drawn."""

    @abstractmethod
    def sample(self, rng: random.Random) -> str:
        """Draws one of the phrase's texts."""


@dataclass(frozen=True)
class Literal(Phrase):
    """Text that stands for itself."""

    text: str

    def sample(self, rng: random.Random) -> str:
        """Returns the text."""
        return self.text


@dataclass(frozen=True)
class Number(Phrase):
    """A whole number from a range."""

    values: range

    def sample(self, rng: random.Random) -> str:
        """Draws a number, in decimal digits."""
        return str(rng.choice(self.values))


@dataclass(frozen=True)
class Choice(Phrase):
    """One of several phrases, each as likely as another."""

    options: tuple[Phrase, ...]

    def sample(self, rng: random.Random) -> str:
        """Draws an option, and a text of it."""
        return rng.choice(self.options).sample(rng)


@dataclass(frozen=True)
class Concatenation(Phrase):
    """Phrases one after another."""

    parts: tuple[Phrase, ...]

    def sample(self, rng: random.Random) -> str:
        """Joins a text of every part."""
        return "".join(part.sample(rng) for part in self.parts)


@dataclass(frozen=True)
class Permutation(Phrase):
    """Phrases in any order, with spaces between them."""

    parts: tuple[Phrase, ...]

    def sample(self, rng: random.Random) -> str:
        """Joins a text of every part in a drawn order."""
        return " ".join(part.sample(rng) for part in rng.sample(self.parts, len(self.parts)))


class TemplateGrammar:
    """Compiles the templates of one language.

    What cannot be completed is pruned: an optional part or an alternative that refers to a slot without values, or to a
    rule that is missing or refers to itself, is left out, and a template that is left with nothing compiles to `None`.

    Args:
        rules: The templates that `<name>` stands for.
        slots: The values that `{name}` stands for: a range of whole numbers, or templates.
    """

    def __init__(self, rules: Mapping[str, str], slots: Mapping[str, range | Sequence[str]]) -> None:
        self._rules = rules
        self._slots = slots
        self._compiled: dict[str, Phrase | None] = {}

    def compile(self, template: str) -> Phrase | None:
        """Compiles a template.

        Args:
            template: The template, such as `"turn [the] {name} (on|off)"`.

        Returns:
            A phrase to draw sentences from, or `None` if the template cannot be completed.

        Raises:
            TemplateSyntaxError: The template is malformed.
        """
        phrase, end = self._group(template, 0, "")
        if end != len(template):
            raise TemplateSyntaxError(f"Unexpected {template[end]!r} at position {end} of the template {template!r}.")
        return phrase

    def _group(self, template: str, position: int, closing: str) -> tuple[Phrase | None, int]:
        """Compiles up to the closing bracket (or the end), and returns the position after it."""
        alternatives: list[Phrase | None] = []
        permuted: list[Phrase | None] = []
        parts: list[Phrase | None] = []

        def finish_alternative() -> None:
            nonlocal permuted, parts
            sequence = _concatenate(parts)
            if permuted:
                permuted.append(sequence)
                complete = tuple(part for part in permuted if part is not None)
                sequence = Permutation(complete) if len(complete) == len(permuted) else None
            alternatives.append(sequence)
            permuted, parts = [], []

        while position < len(template):
            character = template[position]
            position += 1
            if character in _CLOSING:
                part, position = self._group(template, position, _CLOSING[character])
                if character == "[":
                    part = Literal("") if part is None else Choice((part, Literal("")))
                parts.append(part)
            elif character in ")]":
                if character != closing:
                    raise TemplateSyntaxError(
                        f"Unexpected {character!r} at position {position - 1} of the template {template!r}."
                    )
                finish_alternative()
                return _choose(alternatives), position
            elif character == "|":
                finish_alternative()
            elif character == ";":
                permuted.append(_concatenate(parts))
                parts = []
            elif character in "<{":
                name, position = self._reference(template, position, ">" if character == "<" else "}")
                parts.append(self._rule(name) if character == "<" else self._slot(name.partition(":")[0]))
            elif character == "\\" and position < len(template):
                parts.append(Literal(template[position]))
                position += 1
            else:
                parts.append(Literal(character))
        if closing:
            raise TemplateSyntaxError(f"{closing!r} is missing at the end of the template {template!r}.")
        finish_alternative()
        return _choose(alternatives), position

    @staticmethod
    def _reference(template: str, position: int, closing: str) -> tuple[str, int]:
        end = template.find(closing, position)
        if end < 0:
            raise TemplateSyntaxError(f"{closing!r} is missing at the end of the template {template!r}.")
        return template[position:end].strip(), end + 1

    def _rule(self, name: str) -> Phrase | None:
        rule = self._rules.get(name)
        return None if rule is None else self._memoised(f"<{name}>", lambda: self.compile(rule))

    def _slot(self, name: str) -> Phrase | None:
        values = self._slots.get(name)
        if not values:
            return None
        if isinstance(values, range):
            return Number(values)
        return self._memoised(f"{{{name}}}", lambda: _choose([self.compile(value) for value in values]))

    def _memoised(self, key: str, compile_it: Callable[[], Phrase | None]) -> Phrase | None:
        if key not in self._compiled:
            self._compiled[key] = None  # what a reference to itself sees
            self._compiled[key] = compile_it()
        return self._compiled[key]


def _choose(options: Sequence[Phrase | None]) -> Phrase | None:
    possible = tuple(option for option in options if option is not None)
    if len(possible) <= 1:
        return possible[0] if possible else None
    return Choice(possible)


def _concatenate(parts: Sequence[Phrase | None]) -> Phrase | None:
    """Joins the parts, and neighbouring literals into one; nothing can be said if one of the parts is impossible."""
    joined: list[Phrase] = []
    for part in parts:
        if part is None:
            return None
        if isinstance(part, Literal) and joined and isinstance(joined[-1], Literal):
            joined[-1] = Literal(joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined[0] if len(joined) == 1 else Concatenation(tuple(joined))
