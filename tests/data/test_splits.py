"""Held-out text is unlike the training text, the proxy set is part of it, and both have the corpus's languages."""

import string
from collections import Counter

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnas_hf.data import split_corpus
from kdnas_hf.data.splits import _largest_remainders


def letters(text):
    return "".join(character for character in text.casefold() if character.isalpha())


def word(number):
    return "".join(string.ascii_lowercase[(number // 26**place) % 26] for place in range(4))


@pytest.fixture
def corpus():
    languages = ["de"] * 700 + ["en"] * 250 + ["fi"] * 50
    return datasets.Dataset.from_dict(
        {"text": [f"{language} {word(row)}" for row, language in enumerate(languages)], "language": languages}
    )


def test_heldout_is_disjoint_and_proxy_is_part_of_train(corpus):
    splits = split_corpus(corpus, 100, 0.3, seed=0)
    train, proxy, heldout = (set(split["text"]) for split in (splits.train, splits.proxy, splits.heldout))
    assert len(splits.heldout) == len(heldout) == 100
    assert len(train) == 900
    assert len(splits.proxy) == len(proxy) == 270
    assert proxy < train
    assert not heldout & train


def test_languages_keep_their_proportions(corpus):
    splits = split_corpus(corpus, 100, 0.3, seed=0)
    assert Counter(splits.heldout["language"]) == {"de": 70, "en": 25, "fi": 5}
    assert Counter(splits.proxy["language"]) == {"de": 189, "en": 68, "fi": 13}


def test_nothing_in_train_differs_from_heldout_only_in_case_punctuation_or_digits():
    texts = [text for row in range(200) for text in (f"set {word(row)} to 1", f"Set {word(row)} to 25 %!", word(row))]
    splits = split_corpus(datasets.Dataset.from_dict({"text": texts}), 80, 0.5, seed=1)
    heldout = [letters(text) for text in splits.heldout["text"]]
    assert len(heldout) == len(set(heldout)) == 80
    assert not set(heldout) & {letters(text) for text in splits.train["text"]}
    assert len(splits.train) < len(texts) - 80


def test_vowel_signs_distinguish_words():
    corpus = datasets.Dataset.from_dict({"text": ["कि", "की", "कु", "कू"]})
    assert len(split_corpus(corpus, 1, 1.0, seed=0).train) == 3


def test_same_seed_same_splits_and_another_seed_others(corpus):
    first, again, other = (split_corpus(corpus, 100, 0.3, seed=seed) for seed in (0, 0, 1))
    for split in ("train", "proxy", "heldout"):
        assert getattr(first, split).to_dict() == getattr(again, split).to_dict()
        assert getattr(first, split).to_dict() != getattr(other, split).to_dict()


def test_corpus_without_languages_or_with_unknown_ones_is_split(corpus):
    assert len(split_corpus(corpus.remove_columns("language"), 100, 0.3, seed=0).proxy) == 270
    texts = [word(row) for row in range(40)]
    mixed = datasets.Dataset.from_dict({"text": texts, "language": ["de", None] * 20})
    assert Counter(split_corpus(mixed, 10, 1.0, seed=0).heldout["language"]) == {"de": 5, None: 5}


def test_too_small_corpus_names_the_numbers_and_the_remedy(corpus):
    with pytest.raises(ValueError, match=r"heldout_sentences=501 .* 1000 sentences .* at most 500, .* at least 1002"):
        split_corpus(corpus, 501, 0.3, seed=0)
    alike = datasets.Dataset.from_dict({"text": [f"volume {number}" for number in range(100)]})
    with pytest.raises(ValueError, match=r"1 sentences that differ .* \(100 in all\)"):
        split_corpus(alike, 10, 0.3, seed=0)


@pytest.mark.parametrize(("heldout", "fraction"), [(0, 0.3), (10, 0.0), (10, 1.1)])
def test_impossible_sizes_are_refused(corpus, heldout, fraction):
    with pytest.raises(ValueError, match="must be"):
        split_corpus(corpus, heldout, fraction, seed=0)


def test_missing_text_column_is_refused():
    with pytest.raises(ValueError, match=r"no column 'text'; its columns are \['sentence'\]"):
        split_corpus(datasets.Dataset.from_dict({"sentence": ["a", "b"]}), 1, 0.5, seed=0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=20), st.floats(0, 1))
def test_largest_remainders_give_every_seat_and_stay_within_one_of_the_quota(weights, share):
    seats = int(share * sum(weights))
    sizes = _largest_remainders(weights, seats)
    assert sum(sizes) == seats
    for size, weight in zip(sizes, weights, strict=True):
        assert abs(size - weight * seats / sum(weights)) < 1
        assert size <= weight
