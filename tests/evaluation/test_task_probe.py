"""A probe tells students apart by their frozen states, and leaves everything as it was."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tiny_tasks import (
    ENTITY_TASK,
    TINY_STUDENT,
    TOPIC_TASK,
    entity_rows,
    topic_rows,
    write_rows,
    write_topics,
)

from kdnas_hf import KDNASConfig, KDNASModel
from kdnas_hf.evaluation import METRICS, TaskProbe, load_probe_data, parse_quality


class TableStudent(torch.nn.Module):
    """A student whose state of a token is its row of a table, and half of it dropped in training."""

    device = torch.device("cpu")

    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Parameter(table)
        self.dropout = torch.nn.Dropout(0.5)
        self.frozen = torch.nn.Dropout(0.5).eval()

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=self.frozen(self.dropout(self.table[input_ids])))


def letters(tokenizer, scale=1.0):
    """Rows that hold a token's first letter and nothing else."""
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    table = torch.zeros(len(pieces), 8)
    for number, piece in enumerate(pieces):
        table[number, "bdgklmn".find(piece[1]) if piece.startswith("▁") else 7] = scale
    return TableStudent(table)


def tiny_student(tokenizer, **shape):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return KDNASModel(KDNASConfig(vocab_size=len(tokenizer), **TINY_STUDENT | shape))


def write_task(folder, text, name):
    (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{name}.yaml")


@pytest.fixture
def topic(tmp_path):
    return write_task(tmp_path, TOPIC_TASK, "topic")


@pytest.fixture
def topics(tmp_path, topic):
    write_topics(tmp_path / "data")
    return load_probe_data(topic, tmp_path / "data")


@pytest.fixture
def entities(tmp_path):
    write_rows(tmp_path / "data", "entity-en-train", entity_rows(80, 0))
    for seed, language in enumerate(("de", "sw"), start=1):
        write_rows(tmp_path / "data", f"entity-{language}-test", entity_rows(20, seed))
    return load_probe_data(write_task(tmp_path, ENTITY_TASK, "entity"), tmp_path / "data")


def test_states_that_separate_the_classes_score_one_and_states_without_content_chance(tokenizer, topics):
    probe = TaskProbe(topics, tokenizer, max_length=32)
    assert probe.label == "topic probe"
    assert probe({}, letters(tokenizer)) == 1
    assert probe({}, letters(tokenizer, scale=1e-3)) == 1  # whatever the scale of the states
    noise = TableStudent(torch.ones(len(tokenizer), 8))
    assert probe({}, noise) == pytest.approx(1 / 3, abs=0.1)


def test_words_are_classified_by_their_own_states(tokenizer, entities):
    probe = TaskProbe(entities, tokenizer, max_length=64)
    # B and I differ by the word before, of which a table knows nothing: entities of one word are right
    known = probe({}, letters(tokenizer))
    assert 0.5 < known < 1
    assert probe({}, TableStudent(torch.ones(len(tokenizer), 8))) == 0
    # words that are cut off are errors
    assert probe({}, letters(tokenizer)) > TaskProbe(entities, tokenizer, max_length=5)({}, letters(tokenizer))


def test_pairs_are_read_in_one_input(tokenizer, tmp_path):
    # the second text alone has the label
    rows = [
        {"premise": other["text"], "hypothesis": row["text"], "label": row["label"]}
        for row, other in zip(topic_rows(90, 0), topic_rows(91, 1)[1:], strict=True)
    ]
    for language in ("en", "de"):
        write_rows(tmp_path / "data", f"xnli-{language}-dev", rows[::2])
    write_rows(tmp_path / "data", "xnli-en-train", rows)
    probe = TaskProbe.load("xnli", tokenizer, 32, tmp_path / "data")
    assert probe({}, letters(tokenizer)) == 1
    lengths = {len(ids) for ids in probe._input_ids}
    assert lengths == {len(tokenizer(rows[0]["premise"], rows[0]["hypothesis"])["input_ids"])}


@pytest.mark.parametrize("kind", ["topics", "entities"])
def test_a_score_is_that_of_a_slow_probe(kind, tokenizer, request):
    data = request.getfixturevalue(kind)
    student = tiny_student(tokenizer).eval()
    probe = TaskProbe(data, tokenizer, max_length=64)

    def rows(example):
        words = isinstance(example.text, list)
        encoded = tokenizer([example.text], is_split_into_words=words, return_tensors="pt")
        with torch.no_grad():
            states = student(input_ids=encoded["input_ids"]).last_hidden_state[0].double().numpy()
        if not words:
            return states.mean(0, keepdims=True)
        return states[[encoded.word_ids().index(word) for word in range(len(example.text))]]

    scale = StandardScaler()
    inputs = scale.fit_transform(np.concatenate([rows(example) for example in data.train.examples]))
    targets = np.concatenate([np.atleast_1d(example.label) for example in data.train.examples])
    classifier = LogisticRegression(C=0.01, max_iter=1000).fit(inputs, targets)
    scores = []
    for part in data.test.values():
        predicted, references = [], []
        for example in part.examples:
            names = [data.labels[n] for n in classifier.predict(scale.transform(rows(example)))]
            labels = [data.labels[n] for n in np.atleast_1d(example.label)]
            predicted.append(names if kind == "entities" else names[0])
            references.append(labels if kind == "entities" else labels[0])
        metric = METRICS[data.task.metric]()
        scores.append(metric.compute(predictions=predicted, references=references)[metric.primary])
    # one word on the border may fall on either side
    assert probe({}, student) == pytest.approx(np.mean(scores), abs=0.01)


def test_languages_count_alike_whatever_their_sizes(tokenizer, topic, tmp_path):
    write_rows(tmp_path / "data", "topic-en-train", topic_rows(120, 0))
    write_rows(tmp_path / "data", "topic-de-test", topic_rows(60, 1))
    # in a small language every label is another
    wrong = [row | {"label": (row["label"] + 1) % 3} for row in topic_rows(6, 2)]
    write_rows(tmp_path / "data", "topic-sw-test", wrong)
    data = load_probe_data(topic, tmp_path / "data")
    del data.test["en"]
    assert TaskProbe(data, tokenizer, max_length=32)({}, letters(tokenizer)) == 0.5


def test_samples_are_of_all_languages_alike_and_follow_from_the_seed(tokenizer, topics):
    def drawn(seed):
        probe = TaskProbe(topics, tokenizer, 32, max_train=30, max_test=30, seed=seed)
        return probe._input_ids, {language: len(part) for language, part in probe.test.items()}

    ids, sizes = drawn(0)
    assert sizes == {"de": 10, "en": 10, "sw": 10}
    assert len(ids) == 60
    assert drawn(0) == (ids, sizes)
    other = drawn(1)[0]
    assert other[:30] != ids[:30]
    assert other[30:] != ids[30:]


def test_a_reading_leaves_modes_gradients_and_random_states_as_they_were(tokenizer, topics):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    student = letters(tokenizer)
    first = TaskProbe(topics, tokenizer, max_length=32)({}, student)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert (student.training, student.dropout.training, student.frozen.training) == (True, True, False)
    student.eval()
    assert TaskProbe(topics, tokenizer, max_length=32)({}, student) == first
    assert not student.training
    assert student.table.grad is None


def test_a_student_can_learn_on_after_a_reading(tokenizer, topics):
    student = tiny_student(tokenizer).train()
    TaskProbe(topics, tokenizer, max_length=32)({}, student)
    student(input_ids=torch.tensor([[0, 5, 2]])).last_hidden_state.sum().backward()
    assert student.embeddings.word_embeddings.weight.grad is not None


def test_modes_are_restored_after_an_error_too(tokenizer, topics):
    student = letters(tokenizer)
    student.table = torch.nn.Parameter(student.table[:3])
    with pytest.raises(IndexError):
        TaskProbe(topics, tokenizer, max_length=32)({}, student)
    assert student.dropout.training


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_student_that_diverged_has_no_quality(tokenizer, topics, value):
    student = letters(tokenizer)
    word = topics.test["de"].examples[0].text.split()[0]
    student.table.data[tokenizer.convert_tokens_to_ids(f"▁{word}")] = value
    assert TaskProbe(topics, tokenizer, max_length=32)({}, student) is None


def test_development_rows_are_scored_where_there_are_any(topic, tmp_path):
    write_topics(tmp_path / "data")
    write_rows(tmp_path / "data", "topic-en-test", topic_rows(9, 7))
    write_rows(tmp_path / "data", "topic-de-validation", topic_rows(9, 8))
    data = load_probe_data(topic, tmp_path / "data")
    assert {language: part.source for language, part in data.test.items()} == {
        "de": "topic-de-validation.jsonl.gz",
        "en": "topic-en-dev.jsonl.gz",
        "sw": "topic-sw-test.jsonl.gz",
    }


@pytest.mark.parametrize(("text", "expected"), [
    ("heldout", ("heldout", None)),
    ("probe:intents", ("probe", "intents")),
    ("probe:C:/mine.yaml", ("probe", "C:/mine.yaml")),
])  # fmt: skip
def test_a_quality_is_read(text, expected):
    assert parse_quality(text) == expected


@pytest.mark.parametrize("text", ["", "probe", "probe:", "probe: ", "heldout:intents", "intents", "Heldout"])
def test_another_quality_is_refused(text):
    with pytest.raises(ValueError, match=r"^quality='.*' is unknown; choose heldout, or probe:<task>[^\n]*$"):
        parse_quality(text)


def refusal(task, data_dir=None, error=ValueError):
    with pytest.raises(error) as raised:
        load_probe_data(task, data_dir)
    assert str(raised.value).startswith(f"quality=probe:{task}: ")
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_task_that_cannot_be_probed_is_refused_with_the_remedy(topic, tmp_path):
    assert "'intnts' is unknown; did you mean intents?" in refusal("intnts")
    assert "cannot be read" in refusal(str(tmp_path / "none.yaml"))
    assert "give a data_dir" in refusal(topic)
    assert "is no folder" in refusal(topic, tmp_path / "none", FileNotFoundError)
    (tmp_path / "data").mkdir()
    assert "holds no topic-en-train.jsonl" in refusal(topic, tmp_path / "data", FileNotFoundError)
    write_rows(tmp_path / "data", "topic-en-train", [row for row in topic_rows(60, 0) if row["label"] == 1])
    said = refusal(topic, tmp_path / "data")
    assert "training rows are of one class; choose another task, or give rows of several classes in data_dir" in said


def test_data_that_cannot_be_reached_are_refused_with_the_remedy(tmp_path):
    hub = f"hub: {{dataset: {tmp_path / 'absent'}, languages: [en, de]}}"
    task = write_task(tmp_path, TOPIC_TASK.replace("local: {train: topic, test: topic}", hub), "far")
    assert "give the task's files in data_dir" in refusal(task)


def test_a_sample_of_one_class_is_refused(tokenizer, topics):
    with pytest.raises(ValueError, match=r"^quality=probe:topic: all 1 training rows are of one class"):
        TaskProbe(topics, tokenizer, max_length=32, max_train=1)
