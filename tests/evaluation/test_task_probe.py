"""A task's probe: it reads what is linearly in a student's states, and leaves the student as it was."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_tasks import ENTITY_TASK, TOPIC_TASK, entity_rows, topic_rows, write_rows, write_topics

from kdnas_hf.evaluation import TaskProbe, load_probe_data, parse_quality
from tiny_teacher import WORDS, make_teacher_model

NUMBERS = {word: number + 4 for number, word in enumerate(WORDS)}  # behind four special tokens


class Table(torch.nn.Module):
    """A student whose state of a token is a row of a table: what it knows of words is what the test puts there."""

    device = torch.device("cpu")

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=self.table[input_ids])


def beside(states, tokens):
    """States with those of so many tokens before; said often, so that the penalty of the probe is small."""
    return torch.cat([states, states.roll(tokens, dims=1)], dim=-1).repeat(1, 1, 64)


class Tagger(Table):
    """One that knows the word before as well."""

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=beside(self.table[input_ids], 1))


def letters(noise=0.0):
    """States that tell the first letter of a word."""
    table = torch.randn(len(WORDS) + 5, 7, generator=torch.Generator().manual_seed(0)) * noise
    for word, number in NUMBERS.items():
        table[number, "bdgklmn".index(word[0])] += 1
    return table


def write_task(folder, text, name="task.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture
def topics(tmp_path):
    """A topic task of 300 rows to train on, and in each of two other languages 300 to test on."""
    write_rows(tmp_path / "data", "topic-en-train", topic_rows(300, 0))
    for seed, language in enumerate(("de", "sw"), start=1):
        write_rows(tmp_path / "data", f"topic-{language}-test", topic_rows(300, seed))
    return write_task(tmp_path, TOPIC_TASK), tmp_path / "data"


@pytest.fixture
def entities(tmp_path):
    """An entity task: words that begin with b are persons, two in a row one person."""
    write_rows(tmp_path / "data", "entity-en-train", entity_rows(150, 0))
    write_rows(tmp_path / "data", "entity-de-test", entity_rows(60, 1))
    return write_task(tmp_path, ENTITY_TASK), tmp_path / "data"


def probe_of(task, tokenizer, max_length=16, **kwargs):
    return TaskProbe(load_probe_data(*task), tokenizer, max_length, **kwargs)


def test_states_that_separate_the_classes_score_near_1_and_others_near_chance(topics, tokenizer):
    probe = probe_of(topics, tokenizer)
    assert probe({}, Table(letters(noise=0.1))) > 0.98
    # of each word the same, and of each text whatever comes: a guess of one in three
    assert probe({}, Table(torch.ones(len(WORDS) + 5, 7))) == pytest.approx(1 / 3, abs=0.05)

    class Noise(Table):
        def forward(self, input_ids, attention_mask):
            generator = torch.Generator().manual_seed(int(input_ids.sum()))
            return SimpleNamespace(last_hidden_state=torch.randn(*input_ids.shape, 7, generator=generator))

    assert probe({}, Noise(None)) == pytest.approx(1 / 3, abs=0.1)


def test_more_noise_is_a_lower_score(topics, tokenizer):
    probe = probe_of(topics, tokenizer)
    scores = [probe({}, Table(letters(noise))) for noise in (0.1, 1.0, 3.0)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[2] + 0.1


def test_the_score_is_the_mean_over_languages(tmp_path, tokenizer):
    write_rows(tmp_path / "data", "topic-en-train", topic_rows(120, 0))
    write_rows(tmp_path / "data", "topic-en-test", topic_rows(90, 1))
    wrong = [row | {"label": (row["label"] + 1) % 3} for row in topic_rows(30, 2)]  # fewer, and all are mistaken
    write_rows(tmp_path / "data", "topic-sw-test", wrong)
    task = (write_task(tmp_path, TOPIC_TASK), tmp_path / "data")
    assert probe_of(task, tokenizer)({}, Table(letters())) == pytest.approx(0.5)


def test_words_are_told_by_their_own_states(entities, tokenizer):
    probe = probe_of(entities, tokenizer)
    assert probe({}, Tagger(letters())) > 0.98
    alone = probe({}, Table(letters()))  # without the word before, where a person begins is a guess
    assert 0.2 < alone < 0.95
    assert probe({}, Table(torch.ones(len(WORDS) + 5, 7))) < 0.1


def test_words_that_are_cut_off_are_errors(entities, tokenizer):
    scores = [probe_of(entities, tokenizer, max_length=length)({}, Tagger(letters())) for length in (16, 8, 4)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[1] + 0.1 > scores[2] + 0.2


def test_of_a_word_in_pieces_the_first_is_read(tmp_path, tokenizer):
    def pieces(rows):
        # what follows a known word without a space is unknown: a second token of the same word
        return [row | {"tokens": [f"{word}ß" for word in row["tokens"]]} for row in rows]

    assert tokenizer("bapß")["input_ids"] == [0, NUMBERS["bap"], 3, 2]
    write_rows(tmp_path / "data", "entity-en-train", pieces(entity_rows(150, 0)))
    write_rows(tmp_path / "data", "entity-de-test", pieces(entity_rows(60, 1)))

    class Pieces(Table):
        def forward(self, input_ids, attention_mask):
            return SimpleNamespace(last_hidden_state=beside(self.table[input_ids], 2))

    table = letters()
    table[3] = 100 * torch.randn(7, generator=torch.Generator().manual_seed(1))  # would spoil what it is read with
    probe = probe_of((write_task(tmp_path, ENTITY_TASK), tmp_path / "data"), tokenizer, max_length=32)
    assert probe({}, Pieces(table)) > 0.98


def test_a_pair_of_texts_is_one_input(tmp_path, tokenizer):
    rows = [  # the second text alone decides
        {"premise": word, "hypothesis": ("bap", "dap")[number % 2], "label": number % 2}
        for number, word in enumerate(WORDS)
    ]
    write_rows(tmp_path / "data", "pairs-en-train", rows)
    write_rows(tmp_path / "data", "pairs-de-test", rows)
    text = """
name: pairs
kind: sequence_classification
metric: accuracy
text: premise
text_pair: hypothesis
label: label
labels: ["0", "1"]
local: {train: pairs, test: pairs}
"""
    table = torch.zeros(len(WORDS) + 5, 2)
    table[NUMBERS["dap"], 0] = table[NUMBERS["bap"], 1] = 1.0
    assert probe_of((write_task(tmp_path, text), tmp_path / "data"), tokenizer)({}, Table(table)) > 0.95


@pytest.mark.parametrize("training", [True, False])
def test_the_student_and_the_random_state_are_left_as_they_were(topics, tokenizer, training):
    probe = probe_of(topics, tokenizer, max_train=60, max_test=40)
    student = make_teacher_model(layers=1)  # with dropout
    student.train(training)
    student.embeddings.train(not training)  # a part that is in another mode than the whole
    modes = [module.training for module in student.modules()]
    before = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    first, second = probe({}, student), probe({"error": 0.5}, student)
    assert first == second  # nothing is dropped while it is read, and no metric counts
    assert [module.training for module in student.modules()] == modes
    assert all(parameter.grad is None for parameter in student.parameters())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(np.array_equal(now, then) for now, then in zip(np.random.get_state(), before[1], strict=True))
    assert random.getstate() == before[2]


def test_a_student_that_fails_keeps_its_mode(topics, tokenizer):
    class Broken(Table):
        def forward(self, input_ids, attention_mask):
            raise RuntimeError("out of memory")

    student = Broken(None).train()
    with pytest.raises(RuntimeError, match="out of memory"):
        probe_of(topics, tokenizer)({}, student)
    assert student.training


def test_states_that_are_not_finite_have_no_score(topics, tokenizer):
    table = letters()
    table[NUMBERS["bap"]] = float("nan")
    assert probe_of(topics, tokenizer)({}, Table(table)) is None


def test_samples_are_drawn_by_the_seed_and_shared_by_languages(topics, tokenizer):
    def drawn(seed):
        test = probe_of(topics, tokenizer, max_train=30, max_test=150, seed=seed).test  # also English that was cut off
        return [[example.text for example in test[language]] for language in ("de", "sw")]

    data = load_probe_data(*topics)
    german = [example.text for example in data.test["de"].examples]
    swahili = [example.text for example in data.test["sw"].examples]
    chosen, parallel = drawn(3)
    assert [len(chosen), len(parallel)] == [50, 50]
    assert drawn(3) == [chosen, parallel] != drawn(4)
    assert set(zip(chosen, parallel, strict=True)) <= set(zip(german, swahili, strict=True))  # the same rows of both


def test_development_rows_are_read_where_there_are_some(tmp_path, tokenizer):
    write_topics(tmp_path / "data", languages=("de",))
    write_rows(tmp_path / "data", "topic-de-dev", topic_rows(21, 9))
    data = load_probe_data(write_task(tmp_path, TOPIC_TASK), tmp_path / "data")
    assert len(data.test["de"].examples) == 21
    assert "test" not in data.test["de"].source


def test_reports_call_it_by_its_task(topics, tokenizer):
    assert probe_of(topics, tokenizer).label == "topic probe"
    assert TaskProbe.load(topics[0], tokenizer, 16, topics[1]).label == "topic probe"


def test_a_quality_is_heldout_or_a_probe_of_a_task():
    assert parse_quality("heldout") == ("heldout", None)
    assert parse_quality("probe:intents") == ("probe", "intents")
    assert parse_quality("probe:folder/mine.yaml") == ("probe", "folder/mine.yaml")


@pytest.mark.parametrize("text", ["probe", "probe:", "probe: ", "held-out", "heldout:intents", ""])
def test_other_qualities_are_refused(text):
    with pytest.raises(ValueError, match=f"quality={text!r} is unknown; choose heldout, or probe:<task>") as caught:
        parse_quality(text)
    assert "\n" not in str(caught.value)


def test_what_a_probe_cannot_be_fitted_on_is_refused_in_one_line(tmp_path, tokenizer):
    one_class = [row | {"label": 0} for row in topic_rows(30, 0)]
    write_rows(tmp_path / "same", "topic-en-train", one_class)
    write_rows(tmp_path / "same", "topic-de-test", topic_rows(30, 1))
    (tmp_path / "empty").mkdir()
    task = write_task(tmp_path, TOPIC_TASK)
    torn = write_task(tmp_path, "a: [1\nb: ]2", "torn.yaml")
    for name, folder, kind, said in [
        ("intent", None, ValueError, "'intent' is unknown; did you mean intents"),
        (task, tmp_path / "nowhere", FileNotFoundError, "nowhere"),
        (task, tmp_path / "empty", FileNotFoundError, "topic"),
        (
            task,
            tmp_path / "same",
            ValueError,
            "training rows are of one class; choose another task, or give rows of several",
        ),
        (torn, tmp_path / "same", ValueError, "is not valid YAML"),
    ]:
        with pytest.raises(kind) as caught:
            load_probe_data(name, folder)
        message = str(caught.value)
        assert message.startswith(f"quality=probe:{name}: ")
        assert said in message
        assert "\n" not in message


def test_a_sample_of_one_class_is_refused(topics, tokenizer):
    with pytest.raises(ValueError, match="quality=probe:topic: all 1 training rows are of one class"):
        probe_of(topics, tokenizer, max_train=1)


def test_a_length_that_the_tokenizer_does_not_take_is_refused(topics, tokenizer):
    with pytest.raises(ValueError, match="max_length=65 exceeds"):
        probe_of(topics, tokenizer, max_length=65)
