"""Text is loaded from every kind of source, distinct and balanced, and what is wrong with a source is said at once."""

import bz2
import csv
import gzip
import json
import lzma
from collections import Counter

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import HfArgumentParser

from kdnas_hf.data import DataArguments, corpus, load_corpus
from kdnas_hf.data.balanced_sample import BalancedSample, Sentence

TEXTS = ["first sentence", "zweiter Satz", "третье предложение"]


def load(*sources, **arguments):
    return load_corpus(DataArguments(dataset=[str(source) for source in sources], **arguments))


@pytest.fixture
def two_languages(tmp_path):
    for language, count in (("de", 1000), ("zh-Hant", 30)):
        lines = "".join(f"{language} sentence {number}\n" for number in range(count))
        (tmp_path / f"{language}.txt.xz").write_bytes(lzma.compress(lines.encode()))
    return str(tmp_path / "*.txt.xz")


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "csv", "tsv"])
def test_local_formats_are_read_through_any_compression(tmp_path, kind, suffix):
    records = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
    if kind == "txt":
        content = "\n".join(TEXTS)
    elif kind == "jsonl":
        content = "\n".join(json.dumps(record) for record in records) + "\n\n"
    elif kind == "json":
        content = json.dumps(records)
    else:
        path = tmp_path / "table"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "text"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
        content = path.read_text(encoding="utf-8")
    compress = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    path = tmp_path / f"corpus.{kind}{suffix}"
    path.write_bytes(compress(content.encode("utf-8")))
    loaded = load(path)
    assert loaded.column_names == ["text"]
    assert list(loaded["text"]) == TEXTS


def test_parquet_is_read(tmp_path):
    table = pa.table({"id": [1, 2, 3], "sentence": TEXTS, "language": ["en", "de", None]})
    pq.write_table(table, tmp_path / "part.parquet")
    loaded = load(tmp_path / "part.parquet", text_column="sentence")
    assert list(loaded["text"]) == TEXTS
    assert list(loaded["language"]) == ["en", "de", None]


def test_json_with_records_under_data_is_read(tmp_path):
    (tmp_path / "corpus.json").write_text(json.dumps({"version": 1, "data": [{"text": "a sentence"}]}))
    assert list(load(tmp_path / "corpus.json")["text"]) == ["a sentence"]


def test_lines_are_stripped_and_empty_and_equal_ones_dropped(tmp_path):
    (tmp_path / "corpus.txt").write_text("\ufeffone\r\n\n  two \n \t \none\n two\nthree", encoding="utf-8")
    assert list(load(tmp_path / "corpus.txt")["text"]) == ["one", "two", "three"]


def test_languages_come_from_the_names_of_text_files(two_languages):
    assert Counter(load(two_languages)["language"]) == {"de": 1000, "zh-Hant": 30}


def test_ordinary_file_names_are_no_languages(tmp_path):
    for name in ("train.txt", "corpus.txt", "Notes.txt", "news-2020-crawl-en.txt"):
        (tmp_path / name).write_text(f"text of {name}\n")
    assert load(tmp_path / "*.txt").column_names == ["text"]


def test_several_patterns_are_joined_and_a_file_is_read_once(tmp_path):
    (tmp_path / "de.txt").write_text("deutsch\n")
    (tmp_path / "more.jsonl").write_text('{"text": "english", "language": "en"}\n{"text": "deutsch"}\n')
    loaded = load(tmp_path / "*.txt", tmp_path / "more.jsonl", tmp_path / "de.txt")
    assert loaded.to_dict() == {"text": ["deutsch", "english"], "language": ["de", "en"]}


def test_sample_is_balanced_over_languages_as_far_as_they_go(two_languages):
    sample = load(two_languages, max_sentences=200)
    assert Counter(sample["language"]) == {"de": 170, "zh-Hant": 30}
    assert Counter(load(two_languages, max_sentences=40)["language"]) == {"de": 20, "zh-Hant": 20}


def test_sample_is_deterministic_and_not_merely_the_beginning(two_languages):
    sample = list(load(two_languages, max_sentences=40)["text"])
    assert sample == list(load(two_languages, max_sentences=40)["text"])
    numbers = [int(text.split()[-1]) for text in sample if text.startswith("de")]
    assert numbers == sorted(numbers)
    assert max(numbers) > 500


def test_sample_takes_each_sentence_once():
    sample = BalancedSample(10)
    for number in range(300):
        sample.add(Sentence(f"sentence {number % 12}", None), stratum=str(number % 5))
    texts = [sentence.text for sentence in sample]
    assert len(texts) == len(set(texts)) == 10


def test_every_sentence_is_as_likely_as_another_to_be_sampled():
    chosen = Counter()
    for trial in range(300):
        sample = BalancedSample(10)
        for position in range(50):
            sample.add(Sentence(f"trial {trial}, position {position}", None), stratum="a")
        chosen.update(int(sentence.text.split()[-1]) for sentence in sample)
    assert sum(chosen.values()) == 3000
    assert max(chosen.values()) < 100  # 60 are expected for each position, with a standard deviation of 7
    assert min(chosen[position] for position in range(50)) > 30


def test_cap_above_the_size_keeps_all_in_order(two_languages):
    assert load(two_languages, max_sentences=5000).to_dict() == load(two_languages).to_dict()


def test_embedded_text_is_the_default(text_wheels):
    loaded = load_corpus(DataArguments(max_sentences=690))
    assert loaded.column_names == ["text", "language"]
    counts = Counter(loaded["language"])
    assert sum(counts.values()) == 690
    assert max(counts.values()) - min(counts.values()) <= 2


def test_missing_files_are_named_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "embedded_sentences", lambda: pytest.fail("read before all sources were checked"))
    with pytest.raises(FileNotFoundError, match=r"nothing-\*\.txt' matches no file"):
        load("embedded", tmp_path / "nothing-*.txt")
    with pytest.raises(FileNotFoundError, match=r"'missing\.jsonl' matches no file"):
        load("missing.jsonl")


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.csv", "corpus.parquet"])
def test_wrong_column_names_those_that_exist_before_anything_is_read(tmp_path, monkeypatch, name):
    monkeypatch.setattr(corpus, "embedded_sentences", lambda: pytest.fail("read before all sources were checked"))
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"sentence": TEXTS, "id": [1, 2, 3]}), path)
    else:
        path.write_text('{"sentence": "a", "id": 1}' if name.endswith("jsonl") else "sentence,id\na,1\n")
    with pytest.raises(ValueError, match=r"no column text_column='text'; its columns are \['id', 'sentence'\]"):
        load("embedded", path)


def test_column_that_holds_no_text_is_refused(tmp_path):
    (tmp_path / "numbers.jsonl").write_text('{"text": 5}\n')
    with pytest.raises(ValueError, match=r"numbers\.jsonl, record 1: text_column='text' holds int and not text"):
        load(tmp_path / "numbers.jsonl")


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", "\n \n"), ("a.jsonl", '{"text": null}\n'), ("b.csv", "text\n")]
)
def test_empty_corpus_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match="holds no text"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": '),
        ("a.txt.gz", b"not gzip"),
        ("a.txt.xz", lzma.compress(b"some text\n" * 1000)[:-40]),
        ("a.txt", b"\xff\xfe\xfa\n"),
        ("a.json", b"[1, 2"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.* cannot be read as"):
        load(tmp_path / name)


def test_unknown_format_is_refused(tmp_path):
    (tmp_path / "corpus.docx").write_text("text")
    with pytest.raises(ValueError, match=r"corpus\.docx has a format that is not known"):
        load(tmp_path / "*.docx")


@pytest.fixture
def dataset_directory(tmp_path, monkeypatch):
    """A dataset that `datasets` loads by name, without the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "named_dataset"
    directory.mkdir()
    rows = [{"text": f"sentence {number % 90}", "language": "en", "id": number} for number in range(100)]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_named_dataset_is_loaded(dataset_directory):
    loaded = load(dataset_directory)
    assert loaded.column_names == ["text", "language"]
    assert list(loaded["text"]) == [f"sentence {number}" for number in range(90)]
    assert len(load(dataset_directory, max_sentences=20)) == 20


def test_stream_gives_its_first_sentences(dataset_directory):
    loaded = load(dataset_directory, streaming=True, max_sentences=10)
    assert list(loaded["text"]) == [f"sentence {number}" for number in range(10)]


def test_streams_take_turns(dataset_directory, tmp_path):
    (tmp_path / "other.txt").write_text("one\ntwo\n")
    loaded = load(dataset_directory, tmp_path / "other.txt", streaming=True, max_sentences=5)
    assert list(loaded["text"]) == ["sentence 0", "one", "sentence 1", "two", "sentence 2"]


def test_unknown_split_names_those_that_exist(dataset_directory):
    with pytest.raises(ValueError, match="dataset_split='validation'"):
        load(dataset_directory, dataset_split="validation")


def test_unknown_column_of_a_named_dataset_names_those_that_exist(dataset_directory):
    with pytest.raises(ValueError, match=r"text_column='sentence'; its columns are \['id', 'language', 'text'\]"):
        load(dataset_directory, text_column="sentence")


def test_column_of_numbers_in_a_named_dataset_is_refused(dataset_directory):
    with pytest.raises(ValueError, match=r"text_column='id' holds .*int64.* and not text"):
        load(dataset_directory, text_column="id")


def test_dataset_that_cannot_be_loaded_is_reported_with_the_reason(monkeypatch):
    def fail(name, config):
        raise ValueError(f"BuilderConfig {config!r} not found. Available: ['en', 'de']")

    monkeypatch.setattr(corpus, "load_dataset_builder", fail)
    with pytest.raises(ValueError, match=r"dataset='owner/name' \(dataset_config='xx'.*Available: \['en', 'de'\]"):
        load("owner/name", dataset_config="xx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": []}, "dataset="),
        ({"dataset": ["embedded", " "]}, "dataset="),
        ({"dataset_split": ""}, "dataset_split"),
        ({"text_column": ""}, "text_column"),
        ({"max_sentences": 0}, "max_sentences=0"),
        ({"streaming": True}, "streaming=True needs max_sentences"),
        ({"max_length": 2}, "max_length=2"),
        ({"heldout_sentences": 0}, "heldout_sentences=0"),
        ({"proxy_fraction": 0.0}, "proxy_fraction=0.0"),
        ({"proxy_fraction": 1.5}, "proxy_fraction=1.5"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(**arguments)


def test_arguments_are_read_from_flags_and_from_dictionaries():
    parser = HfArgumentParser(DataArguments)
    flags = ["--dataset", "embedded", "corpus.txt", "--max_sentences", "10", "--streaming", "true"]
    (parsed,) = parser.parse_args_into_dataclasses(flags)
    assert parsed == DataArguments(["embedded", "corpus.txt"], max_sentences=10, streaming=True)
    (parsed,) = parser.parse_dict({"dataset": "embedded", "max_length": 32})
    assert parsed == DataArguments(["embedded"], max_length=32)
    (parsed,) = parser.parse_args_into_dataclasses([])
    assert parsed == DataArguments()
