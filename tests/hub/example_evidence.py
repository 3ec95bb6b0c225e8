"""A student with evidence of everything, in fixed numbers: what cards and publications are tried on."""

import dataclasses
import json

from tiny_tasks import save_tiny_student

from kdnas_hf import StudentEvidence
from kdnas_hf.evaluation import EvaluationResults
from kdnas_hf.evaluation.embeddings import EmbeddingResults, EmbeddingTaskScores, EncoderScores, Estimate
from kdnas_hf.evaluation.results import FineTuningRecord, TaskScores, summarise_task
from kdnas_hf.hub import LatencyEvidence, SearchEvidence, TrainingEvidence, record_evaluation
from kdnas_hf.hub.evidence import CurvePoint, write_search
from kdnas_hf.latency import Latency
from kdnas_hf.search import Confirmation, Trial
from kdnas_hf.students import Architecture

SHAPE = Architecture(
    num_hidden_layers=1, num_attention_heads=2, hidden_size=16, intermediate_size=32, hidden_act="gelu"
)
OTHER_SHAPES = [dataclasses.replace(SHAPE, hidden_size=8), dataclasses.replace(SHAPE, num_hidden_layers=3)]
WIDE, RULE = (dataclasses.replace(SHAPE, intermediate_size=size) for size in (512, 64))
DEVICE = "AMD EPYC (avx2, avx512f), 2 cores, torch 2.13.0+cpu"
VERSIONS = {"kdnas-hf": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0"}
METHOD = f"PyTorch eager, float32, 1 x 128 tokens, 1 thread(s), models interleaved, 15 timed calls each, on {DEVICE}."
# percent of right answers by model, language and seed
ACCURACIES = {
    "teacher": {"en": (0.90, 0.92), "de": (0.80, 0.82), "sw": (0.60, 0.62)},
    "student": {"en": (0.88, 0.88), "de": (0.74, 0.76), "sw": (0.50, 0.54)},
    "no-KD": {"en": (0.70, 0.70), "de": (0.34, 0.36), "sw": (0.33, 0.33)},
}


def example_trial(number, architecture, quality, latency_ms):
    return Trial(
        number=number, episode=0, architecture=architecture, state="complete", latency=Latency(latency_ms, 0.1, 80.0),
        costs={"parameters": 10_000.0, "flops": 2.5e9}, quality=quality, loss=1 - quality, readings={10: quality},
        tokens=1_000, seconds=2.0, reward=quality,
    )  # fmt: skip


def example_confirmation(architecture, origin, qualities, latency_ms, trial=None):
    return Confirmation(
        architecture=architecture, origin=origin, qualities=qualities, latency=Latency(latency_ms, 0.1, 80.0),
        costs={"parameters": 10_000.0, "flops": 2.5e9}, trial=trial,
    )  # fmt: skip


def example_search(rank=1, **changes):
    search = SearchEvidence(
        architecture=SHAPE,
        rank=rank,
        controller="lstm",
        space=240,
        budget={"speedup": 4.0},
        latency_method=METHOD,
        seconds={"design": 4.0, "latency": 8.0, "mini_kd": 90.0, "confirmation": 30.0, "distillation": 100.0,
                 "total": 244.0},
        trials=[
            example_trial(0, SHAPE, 0.36, 10.0),
            example_trial(1, OTHER_SHAPES[0], 0.30, 5.0),
            example_trial(2, OTHER_SHAPES[1], 0.40, 20.0),
            example_trial(3, dataclasses.replace(SHAPE, hidden_act="relu"), 0.31, 11.0),
            Trial(4, 1, WIDE, state="failed", failure="too slow", latency=Latency(31.0, 0.1, 80.0)),
        ],
        confirmations=[
            example_confirmation(SHAPE, "search", (0.350, 0.352, 0.354), 10.1, trial=0),
            example_confirmation(RULE, "teacher's width, 1 layer", (0.349, 0.350, 0.355), 10.2),
            example_confirmation(dataclasses.replace(RULE, hidden_act="relu"), "random", (0.30, 0.303, 0.304), 9.9),
        ],
    )  # fmt: skip
    return dataclasses.replace(search, **changes)


def example_training(**changes):
    training = TrainingEvidence(
        teacher="tiny teacher",
        teacher_id="someone/tiny-teacher",
        teacher_revision=None,
        teacher_license="apache-2.0",
        texts=["someone/texts", "sw.txt"],
        datasets=["someone/texts"],
        languages=["de", "en", "zh-Hant", "zh-CN"],
        sentences=1234,
        max_length=64,
        heldout_sentences=100,
        losses=["hidden_states:1"],
        settings={"layer_mapping": "uniform", "texts_per_step": 32, "learning_rate": 3e-3},
        seed=42,
        tokens=56_789,
        r2=0.6134,
        r2_per_layer={"1": 0.6134},
        curve=[CurvePoint(step=10 * i, loss=1.0 / i, tokens=1000 * i) for i in range(1, 6)],
        seconds=100.0,
        processes=1,
        command=["accelerate", "launch", "recipes/search.py", "recipes/configs/quickstart.yaml"],
        date="2026-11-23T06:00:00+00:00",
        weights="0123456789abcdef",
        device=DEVICE,
        versions=VERSIONS,
    )
    return dataclasses.replace(training, **changes)


def example_latency(**changes):
    return dataclasses.replace(
        LatencyEvidence(
            backend="PyTorch eager, float32", batch_size=1, sequence_length="128", threads=1, samples=15,
            student_ms=10.18, student_iqr_ms=0.14, teacher_ms=74.13, teacher_iqr_ms=0.61, device=DEVICE,
        ),
        **changes,
    )  # fmt: skip


def example_evaluation(hub=None, name="topic"):
    """Scores of teacher, student and baseline in three languages with two seeds."""
    languages = ["de", "en", "sw"]
    records = [
        FineTuningRecord(
            task=name, model=model, source="runs/student", fingerprint="f", data="d", seed=seed, learning_rate=1e-4,
            validation_scores=[0.9], scores={lang: {"accuracy": by_language[lang][seed]} for lang in languages},
            truncated={}, train_seconds=1.0, test_seconds=1.0,
        )
        for model, by_language in ACCURACIES.items()
        for seed in (0, 1)
    ]  # fmt: skip
    part = {"source": "topic-en-train.jsonl.gz", "examples": 100, "omitted": {}}
    test = {lang: {"source": f"topic-{lang}-test.jsonl.gz", "examples": 50, "omitted": {}} for lang in languages}
    scores = TaskScores(
        task=name,
        metric="accuracy",
        train_language="en",
        data={
            "kind": "sequence_classification", "hub": hub, "labels": ["a", "b"], "train": part, "validation": part,
            "test": test, "absent_labels": {},
        },
        majority={"de": 0.33, "en": 0.33, "sw": 0.33},
    )  # fmt: skip
    latency = {
        "teacher": {"median_ms": 74.0, "iqr_ms": 0.5, "speedup": 1.0},
        "student": {"median_ms": 10.0, "iqr_ms": 0.1, "speedup": 7.4},
        "no-KD": {"median_ms": 10.0, "iqr_ms": 0.1, "speedup": 7.4},
    }
    return EvaluationResults(
        tasks={name: summarise_task(scores, records, languages)},
        latency=latency,
        latency_method=METHOD,
        configuration={
            "student": "runs/student", "teacher": "someone/tiny-teacher", "baseline": "random", "num_train_epochs": 6,
            "train_batch_size": 32, "patience": 3, "seeds": [0, 1], "train_word_embeddings": False,
            "learning_rates": [1e-4], "task_distillation": False,
        },
        versions=VERSIONS,
    )  # fmt: skip


def example_vectors():
    """Scores of sentence vectors of teacher and student in two languages of one task."""

    def scores(de, sw, teacher=(1.0, 1.0)):
        values = {"de": Estimate(de, de - 0.1, de + 0.1), "sw": Estimate(sw, sw - 0.1, sw + 0.1)}
        mean = (de + sw) / 2
        shares = {"de": Estimate(de / teacher[0], 0.5, 1.0), "sw": Estimate(sw / teacher[1], 0.5, 1.0)}
        share = Estimate(mean / (sum(teacher) / 2), 0.5, 1.0)
        return EncoderScores(values, Estimate(mean, mean - 0.1, mean + 0.1), {}, shares, share, [])

    data = {language: {"source": f"tatoeba-{language}-dev.jsonl.gz", "rows": 30} for language in ("de", "sw")}
    encoders = {"teacher": scores(0.8, 0.6), "student": scores(0.6, 0.45, (0.8, 0.6))}
    task = EmbeddingTaskScores("bitext", "accuracy", data, encoders)
    return EmbeddingResults({"tatoeba": task}, "teacher", 0.9, 1000, 0, {"teacher": 32, "student": 32}, VERSIONS)


def example_evidence(config, **changes):
    evidence = StudentEvidence(
        config=config,
        training=example_training(),
        search=example_search(),
        latency=[example_latency()],
        evaluations=[example_evaluation()],
    )
    return dataclasses.replace(evidence, **changes)


def save_example_student(folder, tokenizer, evaluation=True, **shape):
    """A tiny student's directory with evidence."""
    save_tiny_student(folder, tokenizer, **shape)
    evidence = folder / "evidence"
    evidence.mkdir()
    write_search(folder, example_search())
    (evidence / "training.json").write_text(json.dumps(dataclasses.asdict(example_training())))
    (evidence / "latency.json").write_text(json.dumps([dataclasses.asdict(example_latency())]))
    if evaluation:
        record_evaluation(folder, example_evaluation())
    return folder
