"""The embedded text is large, balanced, clean and the same everywhere; its labelled part is a usable task."""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter

import pytest

from kdnas_hf.data import embedded_intents, embedded_sentences, intent_sentences

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("home_assistant_intents", "chatterbot_corpus")),
    reason="the wheels of the extra 'demo' with the embedded text are not installed",
)

DIGEST = """
import hashlib
from kdnas_hf.data import embedded_intents, embedded_sentences
for dataset in (embedded_sentences(), embedded_intents()):
    print(hashlib.sha256(repr(dataset.to_dict()).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def sentences():
    return embedded_sentences()


@pytest.fixture(scope="module")
def intents():
    return embedded_intents()


def test_many_distinct_sentences_in_many_languages(sentences):
    assert sentences.column_names == ["text", "language", "source"]
    assert len(sentences) >= 20_000
    assert len(set(sentences["text"])) == len(sentences)
    counts = Counter(sentences["language"])
    assert len(counts) >= 25
    assert max(counts.values()) <= 0.08 * len(sentences)
    assert set(sentences["source"]) == {"home-assistant-intents", "chatterbot-corpus"}


def test_every_script_is_there(sentences):
    text = "".join(sentences["text"])
    scripts = {unicodedata.name(character, "").split(" ")[0] for character in set(text) if character.isalpha()}
    assert scripts >= {"LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "THAI", "CJK", "HANGUL", "TAMIL"}


def test_sentences_are_normalised(sentences):
    for text in sentences["text"]:
        assert text == unicodedata.normalize("NFC", " ".join(text.split()))
        assert any(map(str.isalpha, text))


def test_no_template_syntax_is_left(sentences, intents):
    from_templates = [
        text
        for text, source in zip(sentences["text"], sentences["source"], strict=True)
        if source == "home-assistant-intents"
    ]
    for text in from_templates + list(intents["text"]):
        assert not re.search(r"[()\[\]{}<>|;\\_]", text), text
    for text in sentences["text"]:
        assert not re.search(r"[{}<>|\[\]]", text), text


def test_language_codes_are_bcp_47(sentences, intents):
    languages = set(sentences["language"]) | set(intents["language"])
    assert {"de", "pt-BR", "zh-CN", "sr-Latn", "hi-Latn"} <= languages
    for language in languages:
        assert re.fullmatch(r"[a-z]{2,3}(-[A-Z][a-z]{3})?(-[A-Z]{2})?", language)


def test_labels_are_shared_by_the_languages(intents):
    assert intents.column_names == ["text", "label", "language"]
    labels = {language: set() for language in set(intents["language"])}
    for label, language in zip(intents["label"], intents["language"], strict=True):
        labels[language].add(label)
    assert len(labels) >= 25
    assert len(labels["en"]) >= 30
    assert sum(len(found & labels["en"]) >= 20 for found in labels.values()) >= 25


def test_no_sentence_of_a_language_has_two_labels(intents):
    pairs = list(zip(intents["text"], intents["language"], strict=True))
    assert len(set(pairs)) == len(pairs)


def test_intents_take_turns(intents):
    counts = Counter(
        label for label, language in zip(intents["label"], intents["language"], strict=True) if language == "en"
    )
    assert max(counts.values()) <= 0.1 * sum(counts.values())


def test_number_of_sentences_is_bounded():
    counts = Counter(embedded_intents(50)["language"])
    assert max(counts.values()) <= 50
    with pytest.raises(ValueError, match="sentences_per_language=0"):
        embedded_intents(0)


@pytest.mark.long
def test_same_text_whatever_the_hash_seed(sentences, intents):
    expected = [hashlib.sha256(repr(dataset.to_dict()).encode()).hexdigest() for dataset in (sentences, intents)]
    result = subprocess.run(
        [sys.executable, "-c", DIGEST],
        env=os.environ | {"PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert result.stdout.split() == expected


def test_every_language_of_the_wheel_has_slot_values():
    values = intent_sentences.read_slot_values()
    directory = intent_sentences.wheel_directory("home_assistant_intents", "data", "")
    missing = [path.stem for path in directory.glob("*.json") if not {"area", "name"} <= set(values.get(path.stem, ()))]
    assert len(missing) <= 5, f"slot_values.yaml lacks rooms and devices for {missing}"


@pytest.fixture
def language_file(tmp_path, monkeypatch):
    """Puts a single language in the place of the wheel, and returns its path."""
    monkeypatch.setattr(intent_sentences, "wheel_directory", lambda *args: tmp_path)
    intent_sentences.sample_intent_sentences.cache_clear()
    yield tmp_path / "en.json"
    intent_sentences.sample_intent_sentences.cache_clear()


def test_minor_changes_of_the_wheels_layout_are_tolerated(language_file):
    intents = {
        "Say": {"data": [{"sentences": ["say {word}", "(broken"], "new key": 1}, {"no sentences": []}]},
        "Tell": {"data": [{"sentences": ["tell me {word}", "say yes"]}]},
    }
    lists = {"word": {"values": ["yes", {"in": "no", "out": 0}]}}
    language_file.write_text(json.dumps({"language": "en", "intents": intents, "lists": lists}))
    found = {(row["text"], row["label"]) for row in embedded_intents()}
    # "say yes" expresses both intents, so it expresses neither.
    assert found == {("say no", "Say"), ("tell me yes", "Tell"), ("tell me no", "Tell")}


@pytest.mark.parametrize("content", ["{}", "[]", '{"intents": {"Say": []}}', "not JSON"])
def test_unknown_layout_of_the_wheel_is_reported(language_file, content):
    language_file.write_text(content)
    with pytest.raises(ValueError, match=r"en\.json is not laid out as known"):
        embedded_intents()


def test_empty_wheel_is_reported(language_file):
    with pytest.raises(ValueError, match="holds no language files"):
        embedded_intents()


def test_missing_wheel_names_the_extra():
    from kdnas_hf.data.wheel_files import wheel_directory

    with pytest.raises(ImportError, match=r"pip install 'kdnas_hf\[demo\]'"):
        wheel_directory("package_that_is_not_here", "data", "package-that-is-not-here==1.0")
