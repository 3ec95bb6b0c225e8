"""Tokenised text has what a collator needs and nothing else, whatever state the tokenizer is in."""

import datasets
import pytest

from kdnas_hf.data import tokenize_corpus


@pytest.fixture
def texts():
    return datasets.Dataset.from_dict({"text": ["bap bar", "", "bas bat bep " * 20, "   "], "language": ["a"] * 4})


def test_ids_and_lengths_are_stored_and_nothing_else(texts, tokenizer):
    tokenized = tokenize_corpus(texts, tokenizer, max_length=16)
    assert tokenized.column_names == ["input_ids", "length"]
    assert tokenized[0]["input_ids"] == tokenizer("bap bar")["input_ids"]
    assert list(tokenized["length"]) == [len(ids) for ids in tokenized["input_ids"]]


def test_long_sentences_are_truncated_and_end_as_others_do(texts, tokenizer):
    longest = max(tokenize_corpus(texts, tokenizer, max_length=16)["input_ids"], key=len)
    assert len(longest) == 16
    assert (longest[0], longest[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_sentences_of_only_special_tokens_are_dropped(tokenizer):
    texts = datasets.Dataset.from_dict({"text": ["bap", "", "bar"]})
    assert len(tokenize_corpus(texts, tokenizer, max_length=16)) == 2
    with pytest.raises(ValueError, match="None of 1 sentences"):
        tokenize_corpus(texts.select([1]), tokenizer, max_length=16)


def test_result_and_its_fingerprint_do_not_depend_on_earlier_use(texts, tokenizer):
    first = tokenize_corpus(texts, tokenizer, max_length=16)
    tokenizer(["bap bar", "bas"], padding=True, truncation=True, max_length=3)
    again = tokenize_corpus(texts, tokenizer, max_length=16)
    assert first.to_dict() == again.to_dict()
    assert first._fingerprint == again._fingerprint
    assert first._fingerprint != tokenize_corpus(texts, tokenizer, max_length=8)._fingerprint


def test_nothing_is_cached_on_disk(texts, tokenizer):
    assert tokenize_corpus(texts, tokenizer, max_length=16).cache_files == []


@pytest.mark.parametrize(("max_length", "message"), [(2, "leaves no room beside 2"), (65, "model_max_length=64")])
def test_impossible_lengths_are_refused(texts, tokenizer, max_length, message):
    with pytest.raises(ValueError, match=message):
        tokenize_corpus(texts, tokenizer, max_length=max_length)


def test_missing_text_column_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"no column 'text'; its columns are \['sentence'\]"):
        tokenize_corpus(datasets.Dataset.from_dict({"sentence": ["a"]}), tokenizer, max_length=16)
