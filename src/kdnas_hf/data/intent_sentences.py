"""Labelled sentences from the templates in the wheel home-assistant-intents (Apache-2.0): what is said to a house."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from transformers.utils import logging

from .clean_text import clean_text
from .sentence_templates import Phrase, TemplateGrammar, TemplateSyntaxError
from .wheel_files import wheel_directory

logger = logging.get_logger(__name__)

SOURCE_NAME = "home-assistant-intents"

_TEMPLATE_CHARACTERS = frozenset("()[]{}<>|;\\_")
_MISSES_BEFORE_GIVING_UP = 25
# Slots that the wheel leaves open, by the key under which slot_values.yaml has values for them.
_OPEN_SLOTS = {
    "area": "area",
    "floor": "floor",
    "name": "name",
    "message": "message",
    "zone": "zone",
    "search_query": "search_query",
    "shopping_list_item": "item",
    "todo_list_item": "item",
    "timer_name": "item",
}
# What a timer may be asked to do in the end: whatever these intents say.
_COMMAND_SLOT = "timer_command"
_COMMAND_INTENTS = ("HassTurnOn", "HassTurnOff")
_ANY_LANGUAGE = "*"


@dataclass(frozen=True)
class LabelledSentence:
    """A sentence, the intent that it expresses, and its language (BCP 47)."""

    text: str
    label: str
    language: str


@functools.lru_cache(maxsize=4)
def sample_intent_sentences(sentences_per_language: int, sentences_per_template: int) -> tuple[LabelledSentence, ...]:
    """Draws sentences from the templates of every language.

    The draw is the same in every process. Intents take turns, and within an intent its templates, so that neither an
    intent nor a template with many variants crowds out the others. A sentence that was drawn for two intents of a
    language is left out.

    Args:
        sentences_per_language: The most sentences of one language.
        sentences_per_template: The most sentences for each template of a language, on average: it holds down languages
            that have only a few templates, whose sentences would all be alike.

    Returns:
        Distinct sentences per language, ordered by language and intent.

    Raises:
        ImportError: The wheel is not installed.
        ValueError: The wheel's files are laid out in a way that is not understood.
    """
    directory = wheel_directory("home_assistant_intents", "data", "home-assistant-intents>=2026.1")
    paths = sorted(directory.glob("*.json"), key=lambda path: path.name)
    if not paths:
        raise ValueError(f"{directory} holds no language files (*.json); is home-assistant-intents newer than known?")
    slot_values = read_slot_values()
    sentences: list[LabelledSentence] = []
    for path in paths:
        language = path.stem
        values = {**slot_values.get(_ANY_LANGUAGE, {}), **slot_values.get(language, {})}
        templates, grammar = _read_language(path, values)
        sentences.extend(_sample_language(language, templates, grammar, sentences_per_language, sentences_per_template))
    return tuple(sentences)


def _sample_language(
    language: str,
    templates: Mapping[str, Sequence[str]],
    grammar: TemplateGrammar,
    sentences_per_language: int,
    sentences_per_template: int,
) -> list[LabelledSentence]:
    rng = random.Random(f"{SOURCE_NAME}/{language}")
    phrases = {}
    for intent in sorted(templates):
        compiled = _compile_all(language, templates[intent], grammar)
        rng.shuffle(compiled)
        if compiled:
            phrases[intent] = compiled
    wanted = min(sentences_per_language, sentences_per_template * sum(map(len, phrases.values())))
    intents_of_text: dict[str, set[str]] = {}
    misses = dict.fromkeys(phrases, 0)
    turn = 0
    while misses and len(intents_of_text) < wanted:
        for intent in list(misses):
            text = clean_text(phrases[intent][turn % len(phrases[intent])].sample(rng))
            known = intents_of_text.get(text)
            if (known is None or intent not in known) and _is_sentence(text):
                intents_of_text.setdefault(text, set()).add(intent)
                misses[intent] = 0
            else:
                misses[intent] += 1
                if misses[intent] >= max(_MISSES_BEFORE_GIVING_UP, len(phrases[intent])):
                    del misses[intent]
            if len(intents_of_text) >= wanted:
                break
        turn += 1
    labelled = [
        LabelledSentence(text, next(iter(intents)), language)
        for text, intents in intents_of_text.items()
        if len(intents) == 1
    ]
    return sorted(labelled, key=lambda sentence: (sentence.label, sentence.text))


def _compile_all(language: str, templates: Sequence[str], grammar: TemplateGrammar) -> list[Phrase]:
    compiled = []
    for template in templates:
        try:
            phrase = grammar.compile(template)
        except TemplateSyntaxError as error:
            logger.debug(f"Left out a template of {language}: {error}")
            continue
        if phrase is not None:
            compiled.append(phrase)
    return compiled


def _is_sentence(text: str) -> bool:
    return len(text) > 1 and not _TEMPLATE_CHARACTERS.intersection(text) and any(map(str.isalpha, text))


def _read_language(path: Path, values: Mapping[str, Sequence[str]]) -> tuple[dict[str, list[str]], TemplateGrammar]:
    """Reads a language's templates by intent, and the grammar of its rules and slots."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        templates = {
            intent: [template for block in body["data"] for template in block.get("sentences", ())]
            for intent, body in content["intents"].items()
        }
        rules = content.get("expansion_rules") or {}
        slots: dict[str, range | Sequence[str]] = {
            slot: values[key] for slot, key in _OPEN_SLOTS.items() if key in values
        }
        for name, definition in (content.get("lists") or {}).items():
            listed = _listed_values(definition)
            if listed:
                slots[name] = listed
        slots.setdefault(
            _COMMAND_SLOT, [template for intent in _COMMAND_INTENTS for template in templates.get(intent, ())]
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not laid out as known from home-assistant-intents 2026 ({type(error).__name__}: {error})."
        ) from error
    return templates, TemplateGrammar(rules, slots)


def _listed_values(definition: Mapping[str, Any]) -> range | list[str]:
    """Returns a list's numbers or its spoken forms; none for a wildcard, which takes any text."""
    if "range" in definition:
        bounds = definition["range"]
        return range(int(bounds["from"]), int(bounds["to"]) + 1, int(bounds.get("step", 1)))
    return [str(value["in"]) if isinstance(value, dict) else str(value) for value in definition.get("values", ())]


def read_slot_values() -> dict[str, dict[str, list[str]]]:
    """Returns what fills the slots that the wheel leaves open, by language and slot; rooms have one order in all."""
    text = files(__package__).joinpath("slot_values.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=yaml.BaseLoader)  # it makes nothing but strings
