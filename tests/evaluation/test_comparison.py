"""Teacher, student and baseline on a tiny task: scores, retention, resumption, reports."""

import csv
import json

import pytest
import torch
from tiny_tasks import TOPIC_TASK, save_tiny_student, write_topics

from kdnas_hf import Comparison, EvaluationArguments
from kdnas_hf.evaluation import FineTuningRecord, comparison
from kdnas_hf.evaluation.results import Spread, TaskScores, best_learning_rate, summarise_task


def record(model, seed, scores, rate=1e-3, validation=(0.5,)):
    values = {language: {"accuracy": score} for language, score in scores.items()}
    return FineTuningRecord("t", model, model, "f", "d", seed, rate, list(validation), values, {}, 1.0, 1.0)


def test_scores_are_added_up_by_language_and_over_seeds():
    records = [
        record("student", 0, {"en": 0.6, "de": 0.4}),
        record("student", 1, {"en": 0.8, "de": 0.4}),
        record("teacher", 0, {"en": 0.9, "de": 0.5}),
        record("teacher", 1, {"en": 0.9, "de": 0.5}),
    ]
    empty = TaskScores(task="t", metric="accuracy", train_language="en", data={}, majority={})
    student = summarise_task(empty, records, ["de", "en"]).models["student"]
    assert student.languages["en"].mean == pytest.approx(0.7)
    assert student.languages["en"].std == pytest.approx(0.1 * 2**0.5)
    assert student.languages["en"].retention == pytest.approx(100 * 0.7 / 0.9)
    assert student.average.mean == pytest.approx(0.55)
    assert student.average.seeds == {0: pytest.approx(0.5), 1: pytest.approx(0.6)}
    assert student.average.retention == pytest.approx(100 * 0.55 / 0.7)
    assert student.zero_shot is not None
    assert student.zero_shot.retention == pytest.approx(80)


def test_one_seed_has_no_spread_and_a_teacher_of_zero_no_retention():
    assert Spread.of({0: 0.5}).std is None
    assert Spread.of({0: 0.5}, Spread.of({0: 0.0})).retention is None


def test_the_learning_rate_is_that_of_the_best_validation_score():
    records = [
        record("s", 0, {}, rate=1e-3, validation=(0.2, 0.6)),
        record("s", 0, {}, rate=1e-4, validation=(0.6, 0.5)),
        record("s", 0, {}, rate=1e-2, validation=(0.3,)),
    ]
    assert best_learning_rate(records) == 1e-4  # as good as the other, and lower


@pytest.fixture
def arguments(tmp_path, teacher_path, tokenizer):
    save_tiny_student(tmp_path / "student", tokenizer)
    (tmp_path / "topic.yaml").write_text(TOPIC_TASK)
    write_topics(tmp_path / "data")
    (tmp_path / "student" / "README.md").write_text("---\nlanguage: [de, en]\n---\n# Card\n")
    given = {
        "student": str(tmp_path / "student"), "teacher": str(teacher_path), "tasks": [str(tmp_path / "topic.yaml")],
        "data_dir": str(tmp_path / "data"), "seeds": [0, 1], "learning_rates": [1e-2, 1e-3], "num_train_epochs": 2,
        "max_length": 32, "latency_sequence_length": 8, "output_dir": str(tmp_path / "evaluation"), "auto_bf16": False,
    }  # fmt: skip
    return lambda **changes: EvaluationArguments(**given | changes)


def test_everything_is_measured_and_reported(arguments, tmp_path):
    results = Comparison(arguments()).run()
    folder = tmp_path / "evaluation"
    saved = json.loads((folder / "results.json").read_text())
    task = saved["tasks"]["topic"]
    assert sorted(task["models"]) == ["no-KD", "student", "teacher"]
    assert sorted(task["models"]["student"]["languages"]) == ["de", "en", "sw"]
    assert sorted(task["models"]["student"]["languages"]["de"]["seeds"]) == ["0", "1"]
    assert task["models"]["student"]["learning_rate"] in (1e-2, 1e-3)
    assert saved["retention"]["student"] == pytest.approx(task["models"]["student"]["average"]["retention"])
    assert saved["latency"]["student"]["speedup"] > 0
    assert saved["latency"]["no-KD"] == saved["latency"]["student"]
    assert task["majority"]["de"] == pytest.approx(1 / 3, abs=0.01)
    assert saved["missing_languages"] == ["sw"]
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert len(rows) == 3 * 2 * 3
    by_hand = [float(r["score"]) for r in rows if r["model"] == "student" and r["language"] == "de"]
    assert sum(by_hand) / 2 == pytest.approx(results.tasks["topic"].models["student"].languages["de"].mean)
    text = (folder / "results.md").read_text()
    for expected in ("| sw * |", "**average without en**", "not among the languages", "most frequent label"):
        assert expected in text
    assert (folder / "scores.png").stat().st_size > 1000


def test_an_interrupted_evaluation_does_only_what_is_missing(arguments, tmp_path, monkeypatch):
    done = []
    fine_tune = comparison.fine_tune

    def counted(source, data, args, seed, rate):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((source, seed, rate))
        return fine_tune(source, data, args, seed, rate)

    monkeypatch.setattr(comparison, "fine_tune", counted)
    with pytest.raises(KeyboardInterrupt):
        Comparison(arguments(baseline="none")).run()
    ledger = tmp_path / "evaluation" / "finetunings.jsonl"
    assert len(ledger.read_text().splitlines()) == 3
    with ledger.open("a") as file:
        file.write('{"task": "topic", "mod')  # killed while it was written
    monkeypatch.setattr(comparison, "fine_tune", lambda *a: done.append(a) or fine_tune(*a))
    Comparison(arguments(baseline="none")).run()
    assert len(done) == len(ledger.read_text().splitlines()) == 6
    # a further seed and a further checkpoint are added; what was done is not done again
    more = arguments(baseline="none", seeds=[0, 1, 2], checkpoints=[f"again={tmp_path / 'student'}"])
    results = Comparison(more).run()
    assert len(done) == 6 + 2 + 4
    assert sorted(results.tasks["topic"].models) == ["again", "student", "teacher"]


def test_scores_of_other_weights_or_data_do_not_count(arguments, tmp_path, tokenizer):
    ledger = tmp_path / "evaluation" / "finetunings.jsonl"

    def evaluated():
        results = Comparison(arguments(baseline="none", seeds=[0], learning_rates=[1e-2])).run()
        lines = [FineTuningRecord.from_json(line) for line in ledger.read_text().splitlines()]
        return results.tasks["topic"].models, [record.model for record in lines]

    before, done = evaluated()
    assert done == ["teacher", "student"]
    save_tiny_student(tmp_path / "student", tokenizer, intermediate_size=48)
    after, done = evaluated()
    # nothing that was measured is removed, and the teacher is not fine-tuned again
    assert done == ["teacher", "student", "student"]
    assert after["teacher"] == before["teacher"]
    assert after["student"].average.seeds.keys() == {0}
    write_topics(tmp_path / "data", languages=("de", "sw", "fr"))
    more, done = evaluated()
    assert done == ["teacher", "student", "student", "teacher", "student"]
    assert sorted(more["student"].languages) == ["de", "en", "fr", "sw"]


def test_another_budget_in_the_same_directory_is_refused(arguments):
    Comparison(arguments(baseline="none", seeds=[0], learning_rates=[1e-2])).run()
    with pytest.raises(ValueError, match="num_train_epochs: 2 there, 3 now"):
        Comparison(arguments(baseline="none", seeds=[0], learning_rates=[1e-2], num_train_epochs=3)).run()


def test_a_student_is_distilled_on_the_task_by_the_teacher_of_the_same_seed(arguments, tmp_path, monkeypatch):
    taught = []
    distil = comparison.distil_on_task

    def watched(source, teacher, data, args, seed, rate):
        taught.append((seed, rate, teacher.model.classifier.out_proj.weight.clone()))
        return distil(source, teacher, data, args, seed, rate)

    monkeypatch.setattr(comparison, "distil_on_task", watched)
    budget = {"baseline": "none", "learning_rates": [1e-2], "num_train_epochs": 8, "patience": 8}
    budget |= {"train_word_embeddings": True, "train_batch_size": 8}
    results = Comparison(arguments(task_distillation=True, **budget)).run()
    assert [(seed, rate) for seed, rate, _ in taught] == [(0, 1e-2), (1, 1e-2)]
    assert not torch.equal(taught[0][2], taught[1][2])
    models = results.tasks["topic"].models
    assert sorted(models) == ["student", "student+task-KD", "teacher"]
    assert models["student+task-KD"].average.mean > 0.4  # a third by chance
    assert results.latency["student+task-KD"] == results.latency["student"]
    assert (
        "student+task-KD: the teacher, fine-tuned with the same seed"
        in (tmp_path / "evaluation/results.md").read_text()
    )
    assert not (tmp_path / "evaluation/tuned_teachers").exists()
    # asked for later: the teacher is fine-tuned once more, to the same weights
    taught.clear()
    later = arguments(output_dir=str(tmp_path / "later"), seeds=[0], **budget)
    Comparison(later).run()
    later = arguments(output_dir=str(tmp_path / "later"), seeds=[0], task_distillation=True, **budget)
    again = Comparison(later).run()
    assert again.tasks["topic"].models["student+task-KD"].average.seeds[0] == models["student+task-KD"].average.seeds[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": []}, "at least one"),
        ({"tasks": ["xnli", "xnli"]}, "name one twice"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"checkpoints": ["x"]}, "is not of the form"),
        ({"checkpoints": ["student=x"]}, "is taken"),
        ({"max_train_examples": 0}, "max_train_examples=0"),
        ({"student": "/nowhere"}, "cannot be loaded as a model"),
    ],
)
def test_bad_input_is_refused_before_anything_slow(arguments, change, message):
    with pytest.raises(ValueError, match=message):
        Comparison(arguments(**change))
