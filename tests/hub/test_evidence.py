"""What is kept of a student: read back as it was written, in public form, and damaged files named."""

import dataclasses
import json

import pytest
from example_evidence import (
    example_evaluation,
    example_latency,
    example_search,
    example_training,
    save_example_student,
)
from transformers import AutoModel

from kdnas_hf import (
    DataArguments,
    DistillationTrainingArguments,
    LatencyBenchmark,
    SearchArguments,
    SearchResult,
    StudentEvidence,
    TeacherArguments,
    TrainingSetup,
)
from kdnas_hf.evaluation import EvaluationResults
from kdnas_hf.export import Budget
from kdnas_hf.hub import record_evaluation, record_latency, record_search, record_training
from kdnas_hf.hub.evidence import teacher_license, training_curve, training_seconds
from kdnas_hf.latency import DeviceFingerprint, LatencyMeasurement, LatencyReport
from kdnas_hf.search import DistilledStudent


def make_args(folder, **changes):
    return DistillationTrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True, **changes)


@pytest.fixture
def student(tmp_path, tokenizer):
    return save_example_student(tmp_path / "student", tokenizer)


def test_evidence_is_read_back_as_it_was_written(student):
    evidence = StudentEvidence.load(student)
    assert evidence.training == example_training()
    assert evidence.search == example_search()
    assert evidence.search.shape.quality == pytest.approx(0.352)
    assert evidence.latency == [example_latency()]
    (evaluation,) = evidence.evaluations
    assert evaluation == example_evaluation()
    assert evidence.config.hidden_size == 16


def test_scores_survive_json():
    results = example_evaluation()
    again = EvaluationResults.from_dict(json.loads(json.dumps(results.as_dict())))
    assert again == results
    assert again.tasks["topic"].models["student"].average.seeds.keys() == {0, 1}  # numbers, not their names


def test_a_student_without_evidence_is_one_of_which_nothing_is_known(student):
    for path in (student / "evidence").iterdir():
        path.unlink()
    evidence = StudentEvidence.load(student)
    assert (evidence.training, evidence.search, evidence.latency, evidence.evaluations) == (None, None, [], [])


@pytest.mark.parametrize(
    "name", ["training.json", "search.json", "latency.json", "evaluations.json", "embeddings.json"]
)
@pytest.mark.parametrize("content", ["{", '{"odd": 1}'])
def test_damaged_evidence_is_named(student, name, content):
    (student / "evidence" / name).write_text(content)
    with pytest.raises(ValueError, match=rf"evidence.*(damaged|does not write)|{name}"):
        StudentEvidence.load(student)


def test_what_is_no_student_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        StudentEvidence.load(tmp_path)


def test_a_training_is_recorded_in_public_form(student, teacher, teacher_path, tmp_path):
    texts = tmp_path / "sw.txt"
    texts.write_text("bap\n")
    evidence = record_training(
        student,
        TrainingSetup(
            teacher,
            TeacherArguments(teacher=str(teacher_path)),
            DataArguments(dataset=[str(texts), "someone/texts", "embedded"]),
            sentences=7,
            languages=["sw", "", "de", "sw"],
            command=["recipes/distill.py", "--output_dir", str(tmp_path / "run"), "--hub_token", "secret"],
        ),
        make_args(tmp_path / "run", losses=["hidden_states", "relations:0.5"]),
        tokens=70,
        metrics={"eval_r2": 0.5, "eval_r2_layer_1": 0.5, "eval_loss": 0.4},
        log_history=[
            {"step": 1, "loss": 0.9, "trained_tokens": 10, "elapsed_seconds": 2.0},
            {"step": 1, "eval_loss": 0.8},
            {"step": 2, "loss": 0.7, "trained_tokens": 20, "elapsed_seconds": 4.5},
        ],
    )
    assert StudentEvidence.load(student).training == evidence
    assert evidence.texts[0] == "sw.txt"
    assert "text_name" not in DataArguments(text_name="News").identity()  # a name makes no other run
    assert "home-assistant-intents" in evidence.texts[2]
    assert evidence.datasets == ["someone/texts"]
    assert evidence.teacher_id is None  # a local teacher has no place on the Hub
    assert evidence.losses == ["hidden_states:1", "relations:0.5"]
    assert evidence.languages == ["de", "sw"]
    assert evidence.command == ["recipes/distill.py", "--output_dir", "run", "--hub_token", "<token>"]
    assert [(point.step, point.loss, point.tokens) for point in evidence.curve] == [(1, 0.9, 10), (2, 0.7, 20)]
    assert evidence.seconds == 4.5
    assert str(tmp_path) not in (student / "evidence" / "training.json").read_text()


def test_scores_of_weights_that_are_gone_are_gone_as_well(student, teacher, tmp_path):
    def record():
        setup = TrainingSetup(teacher, TeacherArguments(), DataArguments(text_name="News"), sentences=1)
        record_training(student, setup, make_args(tmp_path), tokens=1, metrics={}, log_history=[])
        return StudentEvidence.load(student)

    assert record().training.texts == ["News"]
    record_evaluation(student, example_evaluation())
    path = student / "evidence" / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"date": "2026-01-01"}))
    again = record()  # the same weights
    assert again.evaluations
    assert again.training.date == "2026-01-01"  # when the training ended, not when this was written
    model = AutoModel.from_pretrained(student)
    model.embeddings.LayerNorm.weight.data.add_(1)
    model.save_pretrained(student)
    assert not record().evaluations


def test_evaluations_add_up_and_the_last_of_a_task_counts(student):
    record_evaluation(student, example_evaluation(name="other"))
    assert [list(found.tasks) for found in StudentEvidence.load(student).evaluations] == [["topic"], ["other"]]
    again = example_evaluation()
    again.configuration["patience"] = 9
    record_evaluation(student, again)
    found = StudentEvidence.load(student).evaluations
    assert [list(one.tasks) for one in found] == [["other"], ["topic"]]
    assert found[1].configuration["patience"] == 9


def test_a_training_of_which_a_part_was_not_timed_has_no_time():
    timed = [{"step": 1, "loss": 0.9, "elapsed_seconds": 2.0}, {"step": 2, "train_loss": 0.9, "elapsed_seconds": 3.0}]
    assert training_seconds(timed) == 3.0
    assert training_seconds([{"step": 0, "loss": 1.0}, *timed]) is None  # it was resumed from one that was not
    assert training_seconds(timed[1:]) is None
    assert training_seconds([]) is None


def test_a_curve_of_another_trainer_lacks_tokens():
    assert training_curve([{"step": 3, "loss": 1.5}])[0].tokens is None


def test_the_embedded_teacher_is_named_by_its_id(student, teacher, tmp_path):
    setup = TrainingSetup(teacher, TeacherArguments(), DataArguments(), sentences=1)
    evidence = record_training(student, setup, make_args(tmp_path), tokens=1, metrics={}, log_history=[])
    assert evidence.teacher_id == "intfloat/multilingual-e5-small"
    assert evidence.teacher_license == "mit"
    assert evidence.seconds is None


def test_the_licence_is_that_of_the_teachers_card(tmp_path, monkeypatch):
    assert teacher_license(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert teacher_license(str(tmp_path)) == "apache-2.0"
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert teacher_license(str(tmp_path)) is None  # a malformed card stops no training

    def no_network(name):
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.ModelCard.load", no_network)
    assert teacher_license("someone/teacher") is None


def test_a_measurement_of_the_same_kind_replaces_the_one_before(student):
    def report(student_ms, threads):
        measurements = {
            "teacher": LatencyMeasurement(20.0, 1.0, 5),
            "student": LatencyMeasurement(student_ms, 0.5, 5),
        }
        return LatencyReport(measurements, 1, 8, threads, DeviceFingerprint.of("cpu"))

    (student / "evidence" / "latency.json").unlink()
    record_latency(student, report(4.0, 1))
    record_latency(student, report(2.0, 2))
    rows = record_latency(student, report(5.0, 1))
    assert [(row.threads, row.student_ms, row.speedup) for row in rows] == [(2, 2.0, 10.0), (1, 5.0, 4.0)]
    assert StudentEvidence.load(student).latency == rows


def test_latency_is_that_of_teacher_and_student_side_by_side(student, teacher):
    from kdnas_hf.hub.document import measure_latency

    (student / "evidence" / "latency.json").unlink()
    measure_latency(student, teacher, LatencyBenchmark(sequence_length=8, repeats=3, warmup=0))
    (row,) = StudentEvidence.load(student).latency
    assert (row.sequence_length, row.samples) == ("8", 3)
    assert row.teacher_ms > row.student_ms > 0  # four layers of 32 against one of 16


def test_search_evidence_knows_its_own_figures_and_comparison_by_its_shape():
    search = example_search()
    assert search.shape is search.comparison.winner is search.confirmations[0]
    assert search.is_confirmed
    other = dataclasses.replace(search, architecture=search.trials[1].architecture)
    assert (other.shape.trial, other.shape.quality, other.is_confirmed, other.comparison) == (1, 0.30, False, None)
    failed = dataclasses.replace(search, architecture=search.trials[4].architecture)
    assert failed.shape is None
    rule = dataclasses.replace(search, architecture=search.confirmations[1].architecture)  # the search had none like it
    assert rule.shape is search.confirmations[1]
    assert rule.comparison.verdict == "tie"
    assert search.constraint == Budget(4.0)


@pytest.mark.parametrize(
    ("layers", "quality", "label"),
    [({"1": 0.4}, "heldout", "R²"), ({}, "heldout", "1 - L"), ({}, "probe:tasks/mine.yaml", "mine probe")],
)
def test_how_a_shape_was_found_is_kept_as_the_search_tells_it(student, tmp_path, layers, quality, label):
    search = example_search()
    found, other = (
        DistilledStudent(
            path="student", architecture=shape, quality=0.4, loss=0.6, quality_per_layer=layers,
            latency=search.trials[0].latency, costs={}, tokens=1, reward=0.4,
        )
        for shape in (search.architecture, search.trials[1].architecture)
    )  # fmt: skip
    result = SearchResult(
        tmp_path, search.trials, search.confirmations, [other, found], "timed so.", label, {"total": 3.0}
    )
    (tmp_path / "pareto.png").write_bytes(b"plot")
    args = SearchArguments(controller="random", speedup=4.0, latency_budget="5ms", quality=quality)
    record_search(student, result, found, args, space=12)
    evidence = StudentEvidence.load(student).search
    assert evidence == dataclasses.replace(
        search, rank=2, controller="random", space=12, budget={"speedup": 4.0, "latency_ms": 5.0},
        latency_method="timed so.", seconds={"total": 3.0}, label=label,
    )  # fmt: skip
    assert (student / "evidence" / "pareto.png").read_bytes() == b"plot"
    assert label in evidence.comparison.sentence
    lines = (student / "evidence" / "architectures.jsonl").read_text().splitlines()
    assert [json.loads(line)["speedup"] for line in lines] == [trial.speedup for trial in search.trials]
    (student / "evidence" / "architectures.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"architectures\.jsonl is damaged"):
        StudentEvidence.load(student)
