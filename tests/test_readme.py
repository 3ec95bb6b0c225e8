"""The README's Python blocks run as they stand there, on a tiny teacher and tiny texts."""

import json
import re
from pathlib import Path

import pytest
from transformers import AutoModel

from kdnas_hf import KDNASConfig, KDNASModel
from tiny_teacher import make_texts

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
MAX_LINES = 30


def block(name):
    match = re.search(rf"<!-- test: {name} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert match, f"the README has no block {name!r}"
    return match[1]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for language, seed in (("de", 1), ("sw", 2)):
        (tmp_path / "texts" / f"{language}.txt").write_text("\n".join(make_texts(120, seed)) + "\n")
    return tmp_path


def small(code, changes):
    """The block with sizes that a test can afford; every change must still find its place."""
    for old, new in changes.items():
        assert old in code, old
        code = code.replace(old, new)
    return code


def run(code):
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_search_from_a_script_of_the_users_own(here, teacher_path, capsys):
    code = block("search")
    assert len(code.splitlines()) < MAX_LINES
    changes = {
        "FacebookAI/xlm-roberta-base": str(teacher_path),
        "heldout_sentences=1000": "heldout_sentences=40",
        "teacher.tokenizer, 64": "teacher.tokenizer, 24",
        "num_hidden_layers=(2, 3, 4)": "num_hidden_layers=(1, 2)",
        "num_attention_heads=(4, 6)": "num_attention_heads=(2, 4)",
        "hidden_size=(192, 288, 384)": "hidden_size=(8, 16)",
        "intermediate_size=(768, 1024)": "intermediate_size=(16, 24)",
        "num_episodes=3, candidates_per_episode=4": "num_episodes=2, candidates_per_episode=2",
        "speedup=4)": "speedup=0.01, latency_sequence_length=8)",
    }
    run(small(code, changes))
    assert any(line.startswith("student ") for line in capsys.readouterr().out.splitlines())
    assert len((here / "runs/mine/architectures.jsonl").read_text().splitlines()) == 4
    assert isinstance(AutoModel.from_pretrained(here / "runs/mine/student"), KDNASModel)


def test_distillation_of_a_shape_that_is_known(here, teacher_path):
    vocabulary = AutoModel.from_pretrained(teacher_path).config.vocab_size
    changes = {
        "FacebookAI/xlm-roberta-base": str(teacher_path),
        "hidden_size=288, num_hidden_layers=3, num_attention_heads=6, intermediate_size=1024": (
            f"hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size={vocabulary}"
        ),
    }
    run(small(block("distillation"), changes))
    assert isinstance(AutoModel.from_pretrained(here / "runs/student/final"), KDNASModel)


def test_fine_tuning_with_a_plain_trainer(here, tokenizer):
    code = block("fine-tuning")
    assert len([line for line in code.splitlines() if line.strip()]) <= 16
    student = here / "runs/quickstart/student"
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    KDNASModel(KDNASConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(student)
    tokenizer.save_pretrained(student)
    rows = [{"tokens": text.split(), "ner_tags": [i % 7] * len(text.split())} for i, text in enumerate(make_texts(24))]
    (here / "entities.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    names = run(small(code, {"max_length=128": "max_length=32"}))
    assert names["model"].config.num_labels == 7
    assert type(names["model"]).__name__ == "KDNASForTokenClassification"
    # a word has as many labelled sub-words as it has labels: one
    labelled = [[label for label in row["labels"] if label != -100] for row in names["data"]]
    assert labelled == [row["ner_tags"] for row in rows]
