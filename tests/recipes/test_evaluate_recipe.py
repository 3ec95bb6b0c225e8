"""`recipes/evaluate.py` and `recipes/finetune.py`: scores from command lines, the student's card, and bad input."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_tasks import TOPIC_TASK, save_tiny_student, topic_rows, write_rows, write_topics
from transformers import AutoModelForSequenceClassification, pipeline

from kdnas_hf import EvaluationArguments, parse_arguments, write_scores_into_card
from kdnas_hf.evaluation import embeddings

ROOT = Path(__file__).parents[2]


def recipe(name):
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HEAD = "---\nlanguage: [de, en, sw]\n---\n# Card\n"
TAIL = "<!-- end of scores -->\n\n## How to use\n"
CARD = f"{HEAD}\n<!-- scores -->\nNot measured.\n{TAIL}"


@pytest.fixture
def settings(teacher_path, tmp_path, tokenizer):
    save_tiny_student(tmp_path / "student", tokenizer)
    (tmp_path / "student" / "README.md").write_text(CARD)
    (tmp_path / "topic.yaml").write_text(TOPIC_TASK)
    write_topics(tmp_path / "data")
    return {
        "student": str(tmp_path / "student"), "teacher": str(teacher_path), "tasks": [str(tmp_path / "topic.yaml")],
        "data_dir": str(tmp_path / "data"), "seeds": [0, 1], "learning_rates": [1e-2], "num_train_epochs": 2,
        "max_length": 32, "latency_sequence_length": 8, "cpu_threads": 1,
    }  # fmt: skip


def test_the_configuration_that_make_search_ends_with_parses_and_finds_its_student():
    path = str(ROOT / "recipes/configs/embeddings.yaml")
    args, vectors = parse_arguments((EvaluationArguments, embeddings.EmbeddingArguments), [path])
    search = yaml.safe_load((ROOT / "recipes/configs/quickstart.yaml").read_text())
    assert args.student == f"{search['output_dir']}/student"
    assert args.teacher == search["teacher"]
    assert args.embedding_tasks == args.tasks == ["intent_translations"]
    assert vectors.vector_baselines == ["cut"]
    assert path.removeprefix(f"{ROOT}/") in (ROOT / "Makefile").read_text()


def test_the_configuration_of_intents_parses_and_finds_the_student_of_the_quickstart():
    (args,) = parse_arguments((EvaluationArguments,), [str(ROOT / "recipes/configs/intents.yaml")])
    search = yaml.safe_load((ROOT / "recipes/configs/quickstart.yaml").read_text())
    assert args.student == f"{search['output_dir']}/student"
    assert args.output_dir == f"{search['output_dir']}/evaluation"
    assert args.teacher == search["teacher"]
    assert args.models == {"teacher": "embedded", "student": args.student, "no-KD": "random"}
    assert len(args.seeds) > 1  # so that a spread can be told


def test_scores_are_left_and_written_into_the_card(settings, tmp_path):
    path = tmp_path / "evaluation.yaml"
    path.write_text(yaml.safe_dump(settings))
    for _ in range(2):  # the second run finds everything done, and writes the same
        recipe("evaluate").main([str(path), "--output_dir", str(tmp_path / "evaluation")])
    results = json.loads((tmp_path / "evaluation/results.json").read_text())
    assert sorted(results["tasks"]["topic"]["models"]) == ["no-KD", "student", "teacher"]
    card = (tmp_path / "student/README.md").read_text()
    assert card.startswith(HEAD)
    assert card.endswith(TAIL)
    assert "Not measured." not in card
    kept = results["tasks"]["topic"]["models"]["student"]["average"]["retention"]
    assert f"{kept:.1f} %" in card
    assert card.count("| **average** |") == 1
    assert str(tmp_path) not in card  # it says nothing of the machine's folders


def test_a_card_without_a_place_for_scores_stays(tmp_path, caplog):
    assert write_scores_into_card(None, tmp_path) is None
    (tmp_path / "README.md").write_text("# Mine\n")
    assert write_scores_into_card(None, tmp_path) is None
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


def test_bad_input_ends_with_one_line_that_names_the_remedy(settings, tmp_path):
    path = tmp_path / "evaluation.yaml"
    path.write_text(yaml.safe_dump(settings | {"languages": ["fr"], "output_dir": str(tmp_path / "evaluation")}))
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes/evaluate.py"), str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: languages: 'fr' has no test data for topic")
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "evaluation").iterdir())


def test_finetuning_leaves_a_model_that_classifies(settings, tmp_path):
    arguments = ["--model", settings["student"], "--task", settings["tasks"][0], "--data_dir", settings["data_dir"]]
    arguments += ["--max_length", "32", "--output_dir", str(tmp_path / "tuned"), "--num_train_epochs", "8"]
    arguments += ["--learning_rate", "3e-2", "--report_to", "none", "--use_cpu", "true"]
    arguments += ["--per_device_train_batch_size", "16", "--eval_strategy", "epoch", "--disable_tqdm", "true"]
    recipe("finetune").main(arguments)
    scores = json.loads((tmp_path / "tuned/scores.json").read_text())
    assert sorted(scores["test"]) == ["de", "en", "sw"]
    assert scores["test"]["de"]["accuracy"] > 0.6
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned/model")
    assert model.config.id2label == {0: "b", 1: "d", 2: "g"}
    classify = pipeline("text-classification", str(tmp_path / "tuned/model"))
    rows = topic_rows(24, 2)  # those of de
    right = sum("bdg"[row["label"]] == classify(row["text"])[0]["label"] for row in rows)
    assert right / len(rows) == pytest.approx(scores["test"]["de"]["accuracy"])


def test_grouping_by_length_is_refused_where_it_would_misplace_labels(settings, tmp_path):
    arguments = ["--model", settings["student"], "--task", settings["tasks"][0], "--output_dir", str(tmp_path / "x")]
    from transformers import TrainingArguments

    grouping = ["--train_sampling_strategy", "group_by_length"]
    if "train_sampling_strategy" not in TrainingArguments.__dataclass_fields__:
        grouping = ["--group_by_length", "true"]
    with pytest.raises(ValueError, match="leave it out"):
        recipe("finetune").main([*arguments, *grouping, "--report_to", "none"])


class LetterEncoder:
    """Counts letters: sentences of the same letters have the same vector."""

    def __init__(self, letters):
        self.letters = letters

    def encode(self, sentences):
        return np.array([[1.0 + text.count(letter) for letter in self.letters] for text in sentences])


def write_bitext(folder):
    texts = ["ab", "ba b", "aab cc", "bcc", "abc a", "ccc"]
    write_rows(folder, "tatoeba-de-dev", [{"source": f" {text}", "target": text} for text in texts])


def test_sentence_vectors_are_scored_without_training(tmp_path, monkeypatch):
    write_bitext(tmp_path / "data")
    loaded = []

    def load_encoder(path, field):
        loaded.append(path)
        return LetterEncoder("abc" if path == "large" else "ab")

    monkeypatch.setattr(embeddings, "load_encoder", load_encoder)
    monkeypatch.setattr(embeddings, "cut_baseline", lambda teacher, student: LetterEncoder("a"))
    recipe("evaluate").main([
        "--student", "small", "--teacher", "large", "--checkpoints", "other=other", "--tasks", "tatoeba",
        "--vector_baselines", "cut",
        "--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"), "--resamples", "20",
    ])  # fmt: skip
    assert loaded == ["large", "small", "other"]  # and no student of random weights
    results = json.loads((tmp_path / "out/embeddings.json").read_text())
    encoders = results["tasks"]["tatoeba"]["encoders"]
    assert encoders["teacher"]["average"]["value"] == 1
    assert encoders["student"]["average_share"]["value"] < 1
    assert encoders["student"]["below"] == ["de"]
    assert encoders["cut"]["average_share"]["value"] < encoders["student"]["average_share"]["value"]
    assert not (tmp_path / "out/results.json").exists()  # nothing was fine-tuned


def test_tasks_of_both_families_may_be_named_together(settings, tmp_path, monkeypatch):
    write_bitext(tmp_path / "data")
    monkeypatch.setattr(embeddings, "load_encoder", lambda path, field: LetterEncoder("abc"))
    settings |= {"tasks": ["tatoeba", *settings["tasks"]], "output_dir": str(tmp_path / "out"), "seeds": [0]}
    settings |= {"baseline": "none", "languages": None, "num_train_epochs": 1, "resamples": 20}
    path = tmp_path / "evaluation.yaml"
    path.write_text(yaml.safe_dump(settings))
    recipe("evaluate").main([str(path)])
    assert list(json.loads((tmp_path / "out/results.json").read_text())["tasks"]) == ["topic"]
    assert list(json.loads((tmp_path / "out/embeddings.json").read_text())["tasks"]) == ["tatoeba"]


def test_an_unknown_task_is_answered_with_the_nearest_of_both_families():
    for name, nearest in (("stbs", "stsb"), ("wikian", "wikiann")):
        with pytest.raises(ValueError, match=f"did you mean {nearest}"):
            EvaluationArguments(tasks=[name])
