"""Pairs of sentences that ask for the same: what is matched between languages, and what is left out."""

import importlib.util

import pytest

from kdnas_hf.data.intent_translations import intent_languages, intent_translations, meant_sentences

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("home_assistant_intents") is None, reason="the wheel of the extra 'demo' is not installed"
)

ROOMS = {"de": ["küche", "wohnzimmer", "schlafzimmer", "badezimmer", "arbeitszimmer"]}
ROOMS |= {"en": ["kitchen", "living room", "bedroom", "bathroom", "office"]}


@pytest.fixture(scope="module")
def translations():
    return intent_translations()


@pytest.mark.parametrize("language", ["de", "en"])
def test_a_sentence_says_every_value_of_its_meaning(language):
    sentences = meant_sentences(language)
    in_a_room = 0
    for meaning, text in sentences.items():
        for value in meaning[4:]:
            slot, _, what = value.partition("=")
            if slot == "area":
                in_a_room += 1
                assert [room in text.casefold() for room in ROOMS[language]].index(True) == int(what), text
    assert in_a_room > 200
    assert not any(character in text for text in sentences.values() for character in "\ue000\ue001{}[]<>|")


def test_no_two_meanings_of_a_language_have_one_sentence():
    texts = [text.casefold() for text in meant_sentences("fr").values()]
    assert len(texts) == len(set(texts))


def test_values_that_languages_divide_differently_are_left_out():
    named = {value for meaning in meant_sentences("en") for value in meaning[4:]}
    assert {"cover_classes=door", "cover_classes=window", "cover_states=open", "color=red"} <= named
    assert not {"cover_classes=shade", "cover_classes=blind", "cover_states=opening"} & named


def test_every_pair_is_of_one_meaning_and_each_meaning_is_there_once(translations):
    english, german = meant_sentences("en"), meant_sentences("de")
    by_english = {text: meaning for meaning, text in english.items()}
    pairs = translations["de"]
    for source, target in pairs:
        assert german[by_english[target]] == source
    assert len({target for _, target in pairs}) == len(pairs) == 200
    intents = [by_english[target][0] for _, target in pairs]
    assert len(set(intents)) > 20
    assert max(intents.count(intent) for intent in set(intents)) <= 70  # none crowds out the others


def test_languages_have_enough_pairs_and_english_is_the_other_side(translations):
    assert "en" not in translations
    assert len(translations) >= 50
    assert set(translations) < set(intent_languages())
    assert all(50 <= len(pairs) <= 200 for pairs in translations.values())


def test_the_draw_is_the_same_again(translations):
    meant_sentences.cache_clear()
    assert meant_sentences("ko") == meant_sentences.__wrapped__("ko")
    assert {source for source, _ in translations["ko"]} <= set(meant_sentences("ko").values())
