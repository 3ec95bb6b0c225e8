"""Tasks: presets, files of one's own, and what is wrong with them."""

import pytest
from tiny_tasks import TOPIC_TASK

from kdnas_hf import Task
from kdnas_hf.evaluation import METRICS, task_presets


def test_presets_are_those_of_the_readme():
    assert task_presets() == ["intents", "pawsx", "udpos", "wikiann", "xnli"]


@pytest.mark.parametrize("name", task_presets())
def test_every_preset_loads_and_says_where_its_data_are(name):
    task = Task.load(name)
    assert task.name == name
    assert METRICS[task.metric].kind == task.kind
    assert task.embedded or task.hub
    if task.hub:
        assert task.train_language in task.hub.languages


def test_language_codes_are_text_and_not_yaml_truth_values():
    for name in ("wikiann", "udpos", "xnli"):
        hub = Task.load(name).hub
        assert hub is not None
        assert all(isinstance(code, str) for code in hub.languages)
    with pytest.raises(ValueError, match="language codes in quotes"):
        Task.from_dict(
            {"name": "t", "kind": "token_classification", "metric": "token_accuracy", "text": "a", "label": "b",
             "hub": {"dataset": "d", "languages": [False]}}
        )  # fmt: skip


def test_a_task_of_ones_own(tmp_path):
    path = tmp_path / "topic.yaml"
    path.write_text(TOPIC_TASK)
    task = Task.load(str(path))
    assert task.labels == ("b", "d", "g")
    assert task.local is not None
    assert task.local.train == ("topic",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "regression"}, "kind='regression' is unknown"),
        ({"metric": "seqeval_f1"}, "metric='seqeval_f1' is none for sequence_classification"),
        ({"labels": ["a"]}, "at least two"),
        ({"labels": ["a", "a"]}, "name one twice"),
        ({"local": None}, "say where its data are"),
        ({"lable": "x"}, "did you mean label"),
        ({"embedded": "nothing"}, "choose from intents"),
        ({"local": {"train": "x"}}, "lacks the key 'test'"),
    ],
)
def test_an_impossible_task_is_refused_with_a_remedy(change, message):
    content = {"name": "t", "kind": "sequence_classification", "metric": "accuracy", "text": "a", "label": "b"}
    content |= {"local": {"train": "t", "test": "t"}}
    with pytest.raises(ValueError, match=message):
        Task.from_dict(content | change)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean wikiann"):
        Task.load("wikian")
    with pytest.raises(ValueError, match=r"none\.yaml' cannot be read"):
        Task.load("none.yaml")
