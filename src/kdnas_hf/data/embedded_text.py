"""The text of the quickstart: multilingual sentences from two wheels, as datasets, without the Hub."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

from datasets import Dataset, Features, Value

from . import dialogue_sentences, intent_sentences

# Of one language in embedded_sentences, beside its dialogues.
_INTENT_SENTENCES_PER_LANGUAGE = 450
# A language with a dozen templates would otherwise fill its share with variants of the same dozen sentences.
_SENTENCES_PER_TEMPLATE = 15
_MAX_LANGUAGE_SHARE = 0.08


def embedded_sentences() -> Dataset:
    """Returns about 41,000 distinct unlabelled sentences in 69 languages and varieties.

    They come from the wheels home-assistant-intents (Apache-2.0; its templates are expanded) and chatterbot-corpus
    (BSD-3-Clause; dialogues), both in the extra `demo`. Sentences are in NFC with single spaces, no language has more
    than 8 % of them, and the result depends on nothing but the versions of the two wheels. It takes some seconds.

    The text is short and simple: enough to see a search and a distillation work, not to make a student for release.

    Returns:
        A dataset with the columns `text`, `language` (BCP 47) and `source` (the wheel), ordered by language.

    Raises:
        ImportError: One of the wheels is not installed.
        ValueError: One of the wheels has a layout that is not understood.
    """
    by_language: dict[str, list[tuple[str, str]]] = defaultdict(list)
    seen: set[str] = set()
    intents = intent_sentences.sample_intent_sentences(_INTENT_SENTENCES_PER_LANGUAGE, _SENTENCES_PER_TEMPLATE)
    for sentences, source in (
        (intents, intent_sentences.SOURCE_NAME),
        (dialogue_sentences.dialogue_sentences(), dialogue_sentences.SOURCE_NAME),
    ):
        for sentence in sentences:
            if sentence.text not in seen:
                seen.add(sentence.text)
                by_language[sentence.language].append((sentence.text, source))
    limit = _size_at_share({language: len(rows) for language, rows in by_language.items()}, _MAX_LANGUAGE_SHARE)
    columns: dict[str, list[str]] = {"text": [], "language": [], "source": []}
    for language in sorted(by_language):
        rows = by_language[language]
        if len(rows) > limit:
            kept = sorted(random.Random(f"share/{language}").sample(range(len(rows)), limit))
            rows = [rows[position] for position in kept]
        for text, source in rows:
            columns["text"].append(text)
            columns["language"].append(language)
            columns["source"].append(source)
    return Dataset.from_dict(columns, features=Features({name: Value("string") for name in columns}))


def embedded_intents(sentences_per_language: int = 1000) -> Dataset:
    """Returns labelled sentences of home-assistant-intents: a cross-lingual intent classification task.

    Train on one language (`"en"`, say) and test on the others. The labels are the same everywhere, but small languages
    have few of them. A sentence that a language has under two intents is left out. The sentences overlap with those of
    `embedded_sentences`, which carry no labels.

    Args:
        sentences_per_language: The most sentences of one language; intents take turns until it is reached.

    Returns:
        A dataset with the columns `text`, `label` (the intent's name, such as `"HassTurnOn"`) and `language` (BCP 47),
        ordered by language and label.

    Raises:
        ImportError: The wheel is not installed.
        ValueError: The wheel has a layout that is not understood, or `sentences_per_language` is not positive.
    """
    if sentences_per_language < 1:
        raise ValueError(f"sentences_per_language={sentences_per_language} must be at least 1.")
    sentences = intent_sentences.sample_intent_sentences(sentences_per_language, _SENTENCES_PER_TEMPLATE)
    columns = {
        "text": [sentence.text for sentence in sentences],
        "label": [sentence.label for sentence in sentences],
        "language": [sentence.language for sentence in sentences],
    }
    return Dataset.from_dict(columns, features=Features({name: Value("string") for name in columns}))


def _size_at_share(sizes: dict[str, int], share: float) -> int:
    """Returns the largest number of sentences a language may keep, such that none has more than `share` of the total.

    Where there are too few languages for any such number, nothing is cut.
    """
    counts = Counter(sizes.values())
    for limit in range(max(counts), 0, -1):
        total = sum(min(size, limit) * languages for size, languages in counts.items())
        if limit <= share * total:
            return limit
    return max(counts)
