"""Sentences of the same meaning in two languages, from the wheel home-assistant-intents: what is said to a house.

The wheel writes for every language, by intent and by what is filled in, what people may say. Where both languages fill
in the same things - a room, a color, a kind of cover - and with the same values, the sentences ask for the same.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .clean_text import clean_text
from .intent_sentences import SOURCE_NAME, read_slot_values
from .sentence_templates import TemplateGrammar, TemplateSyntaxError
from .wheel_files import wheel_directory

# What stands for a value until it is filled in: characters that no template has.
_MARK = "\ue000{}\ue001"
_MARKED = re.compile("\ue000(\\w+)\ue001")
_DRAWS = 8

# Of these slots, the values that languages tell apart alike: what is a shade here is a blind or a shutter there.
_CLEAR_VALUES = {
    "cover_classes": {"curtain", "door", "garage", "window"},
    "cover_states": {"closed", "open"},
    "fan_mode": set[str](),
}
_MOST_PAIRS = 200
_FEWEST_PAIRS = 50

# intent, what it acts on, what is answered, and the values that are filled in
Meaning = tuple[str, ...]


class _First(random.Random):
    """Draws the first of several: of a value's forms, the one that its language puts first."""

    def choice(self, seq: Any) -> Any:
        """The first."""
        return seq[0]


def intent_translations() -> dict[str, list[tuple[str, str]]]:
    """Pairs of a sentence and an English one of the same meaning, by language (BCP 47).

    A language has at most 200 pairs, no two of one meaning; intents take turns until there are as many. Languages with
    fewer than 50 are left out. The sentences are drawn from templates, each on its own: they mean the same and are not
    translated word by word, and some are clumsy. So finding the other sentence of a pair is hard: the embedded teacher
    does it for 28 % on average, 45 % in Spanish and 7 % in Basque. The draw is the same in every process.

    Raises:
        ImportError: The wheel is not installed.
    """
    english = meant_sentences("en")
    pairs = {}
    for language in intent_languages():
        sentences = meant_sentences(language) if language != "en" else {}
        common = sorted(set(sentences) & set(english))
        random.Random(f"{SOURCE_NAME}/pairs").shuffle(common)
        by_intent: dict[str, list[Meaning]] = defaultdict(list)
        for meaning in common:
            by_intent[meaning[0]].append(meaning)
        turns = itertools.zip_longest(*(by_intent[intent] for intent in sorted(by_intent)))
        chosen = [meaning for turn in turns for meaning in turn if meaning is not None][:_MOST_PAIRS]
        if len(chosen) >= _FEWEST_PAIRS:
            pairs[language] = [(sentences[meaning], english[meaning]) for meaning in chosen]
    return pairs


def intent_languages() -> list[str]:
    """The languages (BCP 47) of the wheel.

    Raises:
        ImportError: The wheel is not installed.
    """
    return sorted(path.stem for path in _directory().glob("*.json"))


@functools.lru_cache(maxsize=80)
def meant_sentences(language: str) -> dict[Meaning, str]:
    """One sentence for each meaning that the wheel has in a language.

    A meaning is an intent, what the wheel says that it acts on and answers, and the values that are filled in. Rooms
    are matched by their place in our own list of five, other values by what the wheel says they mean. Sentences that
    have several meanings, or leave it to the place where they are said which room is meant, are left out. The draw is
    the same in every process.

    Raises:
        ImportError: The wheel is not installed.
    """
    content = json.loads((_directory() / f"{language}.json").read_text(encoding="utf-8"))
    values = _values(content.get("lists") or {}, read_slot_values().get(language, {}).get("area", []))
    grammar = TemplateGrammar(content.get("expansion_rules") or {}, {name: [_MARK.format(name)] for name in values})
    rng = random.Random(f"{SOURCE_NAME}/meanings/{language}")
    found: dict[Meaning, str] = {}
    for meaning, templates in sorted(_blocks(content["intents"]).items()):
        for names, texts in sorted(_draw(templates, grammar, rng).items()):
            for chosen in itertools.product(*(sorted(values[name]) for name in names)):
                said = {name: values[name][value] for name, value in zip(names, chosen, strict=True)}
                text = rng.choice(texts)
                for name, value in said.items():
                    text = text.replace(_MARK.format(name), value)
                key = (*meaning, *(f"{name}={value}" for name, value in zip(names, chosen, strict=True)))
                found[key] = clean_text(text)
    counts = Counter(text.casefold() for text in found.values())
    return {meaning: text for meaning, text in found.items() if counts[text.casefold()] == 1}


def _directory() -> Path:
    return wheel_directory("home_assistant_intents", "data", "home-assistant-intents>=2026.1")


def _blocks(intents: Mapping[str, Any]) -> dict[Meaning, list[str]]:
    """Templates by intent, what they act on, and what is answered."""
    blocks: dict[Meaning, list[str]] = defaultdict(list)
    for intent, body in intents.items():
        for block in body["data"]:
            if not block.get("requires_context"):
                combination = str((block.get("metadata") or {}).get("slot_combination"))
                fixed = json.dumps(block.get("slots") or {}, sort_keys=True)
                blocks[intent, combination, fixed, str(block.get("response"))] += block.get("sentences", ())
    return blocks


def _values(lists: Mapping[str, Any], areas: Sequence[str]) -> dict[str, dict[str, str]]:
    """By slot, what a value means and how it is said."""
    values = {"area": {str(number): area for number, area in enumerate(areas)}}
    bare = TemplateGrammar({}, {})
    for name, definition in lists.items():
        said: dict[str, str] = {}
        clear = _CLEAR_VALUES.get(name)
        for value in definition.get("values", ()):
            phrase = bare.compile(value["in"]) if isinstance(value, dict) and "out" in value else None
            if phrase is not None and (clear is None or str(value["out"]) in clear):
                said.setdefault(str(value["out"]), phrase.sample(_First()))
        if said:
            values[name] = said
    return values


def _draw(templates: Sequence[str], grammar: TemplateGrammar, rng: random.Random) -> dict[tuple[str, ...], list[str]]:
    """Texts with marks, by the slots that they hold."""
    texts: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for template in templates:
        try:
            phrase = grammar.compile(template)
        except TemplateSyntaxError:
            continue
        if phrase is None:
            continue
        for text in [phrase.sample(rng) for _ in range(_DRAWS)]:
            texts[tuple(sorted(set(_MARKED.findall(text))))].append(text)
    return texts
