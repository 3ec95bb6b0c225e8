"""A task's data: from local files, the wheels, or a data set as on the Hub; what is left out is counted."""

import json
import logging

import pytest
from tiny_tasks import ENTITY_TASK, TOPIC_TASK, entity_rows, topic_rows, write_rows, write_topics

from kdnas_hf import Task, load_task_data


@pytest.fixture
def topic_task(tmp_path):
    (tmp_path / "topic.yaml").write_text(TOPIC_TASK)
    return Task.load(str(tmp_path / "topic.yaml"))


@pytest.fixture
def entity_task(tmp_path):
    (tmp_path / "entity.yaml").write_text(ENTITY_TASK)
    return Task.load(str(tmp_path / "entity.yaml"))


def test_local_files_are_found_below_the_folder_too(tmp_path, topic_task):
    write_topics(tmp_path / "data" / "below")
    data = load_task_data(topic_task, tmp_path / "data")
    # English has no test set: its development set is tested on, and its training set cut for what stops the training
    assert sorted(data.test) == ["de", "en", "sw"]
    assert data.test["en"].source == "topic-en-dev.jsonl.gz"
    assert len(data.train.examples) + len(data.validation.examples) == 120
    assert len(data.validation.examples) == 12
    assert data.labels == ["b", "d", "g"]


def test_what_is_tested_on_is_never_trained_on(tmp_path, topic_task):
    rows = [{"text": f"text {number}", "label": number % 3} for number in range(100)]
    write_rows(tmp_path / "data", "topic-en-train", rows)
    data = load_task_data(topic_task, tmp_path / "data")
    parts = [{e.text for e in part.examples} for part in (data.train, data.validation, data.test["en"])]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 100


def test_the_development_set_stops_the_training_where_there_is_a_test_set(tmp_path, topic_task):
    write_topics(tmp_path / "data")
    write_rows(tmp_path / "data", "topic-en-test", topic_rows(9, 7))
    data = load_task_data(topic_task, tmp_path / "data")
    assert data.validation.source == "topic-en-dev.jsonl.gz"
    assert data.test["en"].source == "topic-en-test.jsonl.gz"
    assert len(data.train.examples) == 120


def test_a_language_that_nothing_is_trained_in_may_be_tested_on_its_training_split(tmp_path, topic_task):
    write_topics(tmp_path / "data", languages=())
    write_rows(tmp_path / "data", "topic-fr-train", topic_rows(12, 5))
    data = load_task_data(topic_task, tmp_path / "data", languages=["fr"])
    assert data.test["fr"].source == "topic-fr-train.jsonl.gz"


def test_rows_that_cannot_be_used_are_counted_and_reported(tmp_path, topic_task, caplog):
    write_topics(tmp_path / "data")
    bad = [
        {"text": " ", "label": 0},
        {"text": "x", "label": 3},
        {"text": "x", "label": None},
        {"text": None, "label": 1},
    ]
    write_rows(tmp_path / "data", "topic-de-test", topic_rows(12, 2) + bad)
    with caplog.at_level(logging.WARNING, logger="kdnas_hf"):
        data = load_task_data(topic_task, tmp_path / "data")
    assert data.test["de"].omitted == {"with a label outside the task's": 2, "without text": 2}
    assert len(data.test["de"].examples) == 12
    assert "2 with a label outside the task's, 2 without text" in caplog.text
    assert data.describe()["test"]["de"]["omitted"] == data.test["de"].omitted


def test_a_set_that_is_mostly_unusable_is_refused(tmp_path, topic_task):
    write_topics(tmp_path / "data")
    write_rows(tmp_path / "data", "topic-de-test", [{"text": "x", "label": "other"}] * 5)
    with pytest.raises(ValueError, match=r"most cannot be used .*The task's labels are b, d, g"):
        load_task_data(topic_task, tmp_path / "data")


def test_words_and_labels_must_be_of_a_number(tmp_path, entity_task):
    write_rows(tmp_path / "data", "entity-en-train", entity_rows(60, 0))
    rows = [*entity_rows(9, 1), {"tokens": ["a", "b"], "ner_tags": ["O"]}, {"tokens": [], "ner_tags": []}]
    rows += [{"tokens": ["a"], "ner_tags": ["B-LOC"]}]
    write_rows(tmp_path / "data", "entity-de-test", rows)
    omitted = load_task_data(entity_task, tmp_path / "data").test["de"].omitted
    assert omitted == {
        "with a label outside the task's": 1,
        "with another number of labels than words": 1,
        "without text": 1,
    }


def test_labels_that_a_language_lacks_are_told(tmp_path, topic_task):
    write_topics(tmp_path / "data")
    write_rows(tmp_path / "data", "topic-de-test", [row for row in topic_rows(24, 2) if row["label"] != 1])
    assert load_task_data(topic_task, tmp_path / "data").absent_labels == {"de": ["d"]}


def test_sizes_can_be_cut(tmp_path, topic_task):
    write_topics(tmp_path / "data")
    data = load_task_data(topic_task, tmp_path / "data", max_train_examples=20, max_test_examples=5)
    assert len(data.train.examples) == 20
    # the first ones, so that parallel sets stay parallel
    assert [e.text for e in data.test["de"].examples] == [row["text"] for row in topic_rows(24, 2)[:5]]


def test_missing_data_are_told_with_what_there_is(tmp_path, topic_task):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load_task_data(topic_task, tmp_path / "none")
    (tmp_path / "data").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no topic-en-train\.jsonl"):
        load_task_data(topic_task, tmp_path / "data")
    write_topics(tmp_path / "data")
    with pytest.raises(ValueError, match="'fr' has no test data for topic .*there are de, en, sw"):
        load_task_data(topic_task, tmp_path / "data", languages=["fr"])
    write_rows(tmp_path / "data", "topic-de-test", [{"sentence": "x", "label": 0}])
    with pytest.raises(ValueError, match=r"record 1 has no column 'text'; its columns are \['label', 'sentence'\]"):
        load_task_data(topic_task, tmp_path / "data")
    with pytest.raises(ValueError, match="names no data on the Hub"):
        load_task_data(topic_task)


def test_files_named_as_in_the_wild(tmp_path):
    xnli = Task.load("xnli")
    rows = [{"premise": f"p {n}", "hypothesis": f"h {n}", "label": n % 3} for n in range(40)]
    write_rows(tmp_path / "nli", "lingloop-en-train", rows)
    for language in ("en", "de", "zh-Hant"):
        write_rows(tmp_path / "nli", f"xnli-{language}-dev", rows[:9])
    write_rows(tmp_path / "nli", "sick-en-train", rows)
    data = load_task_data(xnli, tmp_path)
    assert data.train.source == "lingloop-en-train.jsonl.gz"
    assert sorted(data.test) == ["de", "en", "zh-Hant"]
    assert data.test["de"].examples[1].text_pair == "h 1"
    assert data.labels == ["entailment", "neutral", "contradiction"]


def test_a_data_set_laid_out_as_on_the_hub(tmp_path):
    (tmp_path / "hub").mkdir()
    configs = []
    for language in ("en", "de"):
        for split, count in (("train", 30), ("validation", 6), ("test", 9)):
            rows = [{"text": r["text"], "label": r["label"]} for r in topic_rows(count, 1)]
            (tmp_path / "hub" / f"{language}-{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        files = [{"split": s, "path": f"{language}-{s}.jsonl"} for s in ("train", "validation", "test")]
        configs.append({"config_name": language, "data_files": files})
    label = "{name: label, dtype: {class_label: {names: {'0': b, '1': d, '2': g}}}}"
    features = f"  features:\n  - {{name: text, dtype: string}}\n  - {label}"
    infos = "".join(f"- config_name: {language}\n{features}\n" for language in ("en", "de"))
    (tmp_path / "hub" / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\ndataset_info:\n{infos}---\n")
    task = Task.from_dict(
        {"name": "topic", "kind": "sequence_classification", "metric": "accuracy", "text": "text", "label": "label",
         "hub": {"dataset": str(tmp_path / "hub"), "config": "{language}", "languages": ["en", "de"]}}
    )  # fmt: skip
    data = load_task_data(task)
    assert [len(part.examples) for part in (data.train, data.validation, data.test["de"])] == [30, 6, 9]
    assert data.labels == ["b", "d", "g"]  # by the names of the data set's numbers
    (tmp_path / "hub" / "de-validation.jsonl").unlink()
    configs[1]["data_files"] = [file for file in configs[1]["data_files"] if file["split"] != "validation"]
    (tmp_path / "hub" / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\ndataset_info:\n{infos}---\n")
    unseen = load_task_data(task, prefer_development=True)
    # German has none; what stops the training is not what is tested on
    assert {language: len(part.examples) for language, part in unseen.test.items()} == {"de": 9, "en": 6}
    assert len(unseen.train.examples) + len(unseen.validation.examples) == 30
    assert data.from_hub
    assert not unseen.from_hub
    broken = Task.from_dict(
        {"name": "topic", "kind": "sequence_classification", "metric": "accuracy", "text": "texts", "label": "label",
         "hub": {"dataset": str(tmp_path / "hub"), "config": "{language}", "languages": ["en", "de"]}}
    )  # fmt: skip
    with pytest.raises(ValueError, match="has no column 'texts'; it has text, label"):
        load_task_data(broken)


def test_the_embedded_intents_are_trained_in_english_and_tested_in_all():
    data = load_task_data(Task.load("intents"), max_test_examples=20)
    assert len(data.test) > 50
    assert len(data.labels) > 30
    trained = {example.text for example in data.train.examples}
    assert not trained & {example.text for example in data.test["en"].examples}
    # the first rows of a language are not those of its first labels
    assert len({example.label for example in data.test["de"].examples}) > 10
