"""Tokenised text has what a collator needs and nothing else, whatever state the tokenizer is in."""

import datasets
import pytest

from kdnas_hf.data import parse_prompts, tokenize_corpus
from tiny_teacher import make_texts


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


def test_texts_have_prompts_in_their_shares_and_whatever_their_order(tokenizer):
    texts = datasets.Dataset.from_dict({"text": [*make_texts(2000), ""]})
    prompts = parse_prompts("query:1 passage:2 none:1", {"query": "bap ", "passage": "bar "})
    assert prompts == {"bap ": 0.25, "bar ": 0.5, "": 0.25}
    rows = tokenize_corpus(texts, tokenizer, 64, prompts)["input_ids"]
    assert len(rows) == 2000  # a text of nothing is still dropped
    plain = tokenize_corpus(texts, tokenizer, 64)["input_ids"]
    begins = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in ("bap", "bar")]
    found = []
    for row, own in zip(rows, plain, strict=True):
        found.append(next((i for i, ids in enumerate(begins) if row == [own[0], *ids, *own[1:]]), 2))
    assert [found.count(i) / 2000 for i in range(3)] == pytest.approx([0.25, 0.5, 0.25], abs=0.04)
    assert all(row == own for row, own, which in zip(rows, plain, found, strict=True) if which == 2)
    backwards = tokenize_corpus(texts.select(range(1999, -1, -1)), tokenizer, 64, prompts)["input_ids"]
    assert list(backwards)[::-1] == list(rows)


def test_prompts_change_the_fingerprint(texts, tokenizer):
    found = {
        tokenize_corpus(texts, tokenizer, 16, prompts)._fingerprint for prompts in (None, {"a ": 1.0}, {"b ": 1.0})
    }
    assert len(found) == 3


@pytest.mark.parametrize(
    ("values", "said"),
    [(["document"], "Choose from query, none"), (["query:0"], "not a positive"), (["query:x"], "form")],
)
def test_prompts_that_the_teacher_does_not_know_are_refused(values, said):
    with pytest.raises(ValueError, match=f"^prompts.*{said}"):
        parse_prompts(values, {"query": "q: "})


def test_nothing_is_cached_on_disk(texts, tokenizer):
    assert tokenize_corpus(texts, tokenizer, max_length=16).cache_files == []


@pytest.mark.parametrize(("max_length", "message"), [(2, "leaves no room beside 2"), (65, "model_max_length=64")])
def test_impossible_lengths_are_refused(texts, tokenizer, max_length, message):
    with pytest.raises(ValueError, match=message):
        tokenize_corpus(texts, tokenizer, max_length=max_length)


def test_missing_text_column_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"no column 'text'; its columns are \['sentence'\]"):
        tokenize_corpus(datasets.Dataset.from_dict({"sentence": ["a"]}), tokenizer, max_length=16)
