"""Sentences of the dialogues in the wheel chatterbot-corpus (BSD-3-Clause): small talk and trivia in many languages."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from transformers.utils import logging

from .clean_text import clean_text
from .wheel_files import wheel_directory

logger = logging.get_logger(__name__)

SOURCE_NAME = "chatterbot-corpus"

_LANGUAGES = {
    "bengali": "bn",
    "chinese": "zh-CN",
    "dutch": "nl",
    "english": "en",
    "french": "fr",
    "german": "de",
    "hebrew": "he",
    "hindi": "hi",
    "hinglish": "hi-Latn",
    "indonesian": "id",
    "italian": "it",
    "japanese": "ja",
    "korean": "ko",
    "marathi": "mr",
    "oriya": "or",
    "persian": "fa",
    "portuguese": "pt-BR",
    "russian": "ru",
    "spanish": "es",
    "swedish": "sv",
    "tamil": "ta",
    "telugu": "te",
    "thai": "th",
    "traditionalchinese": "zh-TW",
    "turkish": "tr",
    "ukrainian": "uk",
    "urdu": "ur",
    "yoruba": "yo",
}
# Program listings, and a Portuguese file that was decoded with the wrong character set.
_NOISY_CATEGORIES = frozenset({"english/coding", "portuguese/unilab"})
_NOISE = re.compile(r"[{}<>|\[\]\\`_\ufffd]|https?:|www\.|\S@\S")
_MIN_CHARACTERS = 4
_MAX_CHARACTERS = 300


@dataclass(frozen=True)
class DialogueSentence:
    """An utterance, and its language (BCP 47)."""

    text: str
    language: str


@functools.lru_cache(maxsize=1)
def dialogue_sentences() -> tuple[DialogueSentence, ...]:
    """Returns the utterances, distinct in each language, ordered by language and file.

    Listings, addresses and very short or very long utterances are left out.

    Raises:
        ImportError: The wheel is not installed.
        ValueError: The wheel's files are laid out in a way that is not understood.
    """
    directory = wheel_directory("chatterbot_corpus", "data", "chatterbot-corpus==1.3.3")
    found: dict[DialogueSentence, None] = {}
    for folder in sorted((path for path in directory.iterdir() if path.is_dir()), key=lambda path: path.name):
        language = _LANGUAGES.get(folder.name)
        if language is None:
            logger.debug(f"Left out {folder}: its language is not known.")
            continue
        for path in sorted(folder.glob("*.yml"), key=lambda path: path.name):
            if f"{folder.name}/{path.stem}" in _NOISY_CATEGORIES:
                continue
            for utterance in _utterances(path):
                text = clean_text(utterance)
                if "\n" not in utterance.strip() and _is_sentence(text):
                    found[DialogueSentence(text, language)] = None
    if not found:
        raise ValueError(f"{directory} holds no dialogues (<language>/*.yml); is chatterbot-corpus newer than known?")
    return tuple(sorted(found, key=lambda sentence: sentence.language))


def _is_sentence(text: str) -> bool:
    return _MIN_CHARACTERS <= len(text) <= _MAX_CHARACTERS and not _NOISE.search(text) and any(map(str.isalpha, text))


def _utterances(path: Path) -> Iterator[str]:
    # The base loader leaves everything a string: "Yes" is no truth value, "1963" no number.
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        conversations = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)["conversations"]
    except (KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not laid out as known from chatterbot-corpus 1.3: {error}.") from error
    for conversation in conversations:
        if isinstance(conversation, list):
            yield from (utterance for utterance in conversation if isinstance(utterance, str))
