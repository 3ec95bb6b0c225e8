"""Embedding tasks: presets, their rows in files and on the Hub, and what is wrong with them."""

import importlib.util

import datasets
import pytest
from tiny_embedders import write_bitext, write_retrieval, write_rows

from kdnas_hf import Task
from kdnas_hf.evaluation.embeddings import (
    KINDS,
    EmbeddingTask,
    data,
    embedding_task_presets,
    load_embedding_data,
    load_tasks,
)

PAIRS = [{"sentence1": "a", "sentence2": "b", "score": 1.5}, {"sentence1": "c", "sentence2": "d", "score": 4.0}]


@pytest.mark.parametrize("name", embedding_task_presets())
def test_every_preset_loads_and_says_where_its_data_are(name):
    task = EmbeddingTask.load(name)
    assert task.name == name
    assert task.embedded or task.hub
    kind = KINDS[task.kind]
    assert set(task.hub_columns) <= {*kind.columns, *kind.corpus}
    if task.hub:
        assert all(isinstance(code, str) for code in task.hub.languages)


def test_tasks_of_both_families_are_told_apart_by_their_kind(tmp_path):
    (tmp_path / "mine.yaml").write_text("{name: mine, kind: clustering, local: topics}")
    tasks = load_tasks(["xnli", "stsb", str(tmp_path / "mine.yaml")])
    assert [(type(task), task.name) for task in tasks] == [
        (Task, "xnli"), (EmbeddingTask, "stsb"), (EmbeddingTask, "mine"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="did you mean stsb"):
        load_tasks(["stsp"])
    with pytest.raises(ValueError, match="did you mean wikiann"):
        load_tasks(["wikian"])
    with pytest.raises(ValueError, match="name one twice"):
        load_tasks(["stsb", "xnli", "stsb"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "similarty"}, "kind='similarty' is unknown; did you mean 'similarity'"),
        ({"local": None}, "say where its data are"),
        ({"lokal": "x"}, "did you mean local"),
        ({"embedded": "nothing"}, "embedded='nothing' is unknown"),
        ({"name": "a/b"}, "must be a word"),
        ({"hub": {"dataset": "d"}}, "hub lacks the key 'languages'"),
    ],
)
def test_an_impossible_task_is_refused_with_a_remedy(change, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingTask.from_dict({"name": "t", "kind": "similarity", "local": "t"} | change)


def test_files_are_found_in_a_folder_and_below_and_test_comes_before_dev(tmp_path):
    write_rows(tmp_path / "sts", "stsb-de-dev", PAIRS)
    write_rows(tmp_path, "stsb-zh-Hant-dev", PAIRS)
    write_rows(tmp_path, "stsb-zh-Hant-test", PAIRS[::-1])
    write_rows(tmp_path, "stsb-fr-train", PAIRS)  # never scored on
    loaded = load_embedding_data("stsb", tmp_path)
    assert list(loaded.languages) == ["de", "zh-Hant"]
    assert loaded.languages["de"].columns["score"] == [1.5, 4.0]
    assert loaded.languages["zh-Hant"].source == "stsb-zh-Hant-test.jsonl.gz"
    assert loaded.fingerprint("de") != loaded.fingerprint("zh-Hant")


def test_a_limit_cuts_queries_and_leaves_the_corpus_whole(tmp_path):
    write_retrieval(tmp_path, "de")
    rows = load_embedding_data("xquadr", tmp_path, max_rows=5).languages["de"]
    assert len(rows.columns["query"]) == len(rows.columns["positive"]) == 5
    assert len(rows.columns["text"]) == 8
    assert "its first 5 rows" in rows.source


def test_what_is_wrong_with_files_is_said_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load_embedding_data("stsb", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"holds no stsb-<language>-<test\|dev\|validation>\.jsonl"):
        load_embedding_data("stsb", tmp_path)
    write_rows(tmp_path, "stsb-de-dev", [{"sentence1": "a", "sentence2": "b"}])
    with pytest.raises(ValueError, match=r"stsb-de-dev\.jsonl\.gz, record 1 has no column 'score'"):
        load_embedding_data("stsb", tmp_path)
    with pytest.raises(ValueError, match="'sw' is no language of stsb in .* choose from de"):
        load_embedding_data("stsb", tmp_path, ["de", "sw"])
    with pytest.raises(ValueError, match=r"languages=\[\]"):
        load_embedding_data("stsb", tmp_path, [])
    write_rows(tmp_path, "tatoeba-de-dev", [])
    with pytest.raises(ValueError, match=r"tatoeba-de-dev\.jsonl\.gz is empty"):
        load_embedding_data("tatoeba", tmp_path)
    write_retrieval(tmp_path, "de")
    (tmp_path / "xquadr-de-dev-corpus.jsonl.gz").unlink()
    with pytest.raises(FileNotFoundError, match="holds no xquadr-de-dev-corpus.jsonl beside"):
        load_embedding_data("xquadr", tmp_path)


def test_columns_of_the_hub_are_renamed_and_a_corpus_is_made_of_the_rows(monkeypatch):
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        rows = {"question": ["q", "r", "s"], "context": ["b", "a", "b"], "id": [1, 2, 3]}
        return datasets.Dataset.from_dict(rows)

    monkeypatch.setattr(data, "load_dataset", load)
    rows = load_embedding_data("xquadr", languages=["de"]).languages["de"]
    assert rows.columns == {"query": ["q", "r", "s"], "positive": [0, 1, 0], "text": ["b", "a"]}
    assert asked == [("google/xquad", "xquad.de", "validation")]
    with pytest.raises(ValueError, match="mteb/stsb_multi_mt has no column 'sentence1'; it has question, context, id"):
        load_embedding_data("stsb", languages=["de"])


def test_without_the_hub_one_line_says_what_to_do(monkeypatch):
    def load(*args, **kwargs):
        raise ConnectionError("Couldn't reach it\nand more lines")

    monkeypatch.setattr(data, "load_dataset", load)
    with pytest.raises(ValueError, match=r"deu-eng, split test.*Couldn't reach it\).*give the task's files") as raised:
        load_embedding_data("tatoeba", languages=["de"])
    assert "\n" not in str(raised.value)


def test_another_row_is_other_data(tmp_path):
    write_bitext(tmp_path, "de")
    before = load_embedding_data("tatoeba", tmp_path)
    assert before.fingerprint("de") == load_embedding_data("tatoeba", tmp_path).fingerprint("de")
    write_bitext(tmp_path, "de", count=31)
    assert before.fingerprint("de") != load_embedding_data("tatoeba", tmp_path).fingerprint("de")


@pytest.mark.skipif(importlib.util.find_spec("home_assistant_intents") is None, reason="the extra demo is missing")
def test_the_embedded_translations_need_no_files(tmp_path):
    loaded = load_embedding_data("intent_translations", languages=["de", "ko"], max_rows=60)
    assert list(loaded.languages) == ["de", "ko"]
    columns = loaded.languages["de"].columns
    assert len(columns["source"]) == len(columns["target"]) == 60
    # it has no files, so a folder for other tasks does not get in its way
    assert load_embedding_data("intent_translations", tmp_path, ["de"], 60).languages["de"] == loaded.languages["de"]
    with pytest.raises(ValueError, match="'similarity' is unknown. Choose from bitext"):
        EmbeddingTask.from_dict({"name": "t", "kind": "similarity", "embedded": "intent_translations"})
