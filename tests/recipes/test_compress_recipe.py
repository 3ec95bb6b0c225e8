"""`recipes/compress.py`: a smaller student with its tokenizer, and only what is true of it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from example_evidence import save_example_student
from transformers import AutoModel, AutoTokenizer

from kdnas_hf import StudentEvidence
from kdnas_hf.hub import stage_student
from kdnas_hf.students import KDNASConfig, KDNASForSequenceClassification, SentenceEncoder
from kdnas_hf.utils.sentence_head import Normalize, SentenceHead
from tiny_teacher import WORDS, make_texts

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "compress.py"


@pytest.fixture
def recipe():
    spec = importlib.util.spec_from_file_location("compress_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def student(tmp_path, tokenizer):
    return save_example_student(tmp_path / "student", tokenizer)


@pytest.fixture
def texts(tmp_path):
    """Sentences of some of the words."""
    path = tmp_path / "en.txt"
    some = [text for text in make_texts(4000, seed=3) if all(word < "g" for word in text.split())]
    path.write_text("\n".join([*some, *(f"{first} {last}" for first in WORDS[:6] for last in WORDS[:6])]) + "\n")
    return path


def test_a_vocabulary_is_trimmed_to_files(recipe, student, texts, tmp_path, capsys):
    recipe.main([str(student), "--trim_to", str(texts), "--heldout_sentences", "10"])
    folder = tmp_path / "student-compressed"
    evidence = StudentEvidence.load(folder)
    made = evidence.compression
    model, loaded = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert made.vocab_size == len(loaded) == model.config.vocab_size < made.vocab_size_before
    assert made.bytes < made.bytes_before
    assert made.kept_variance == 1
    assert f"| tokens | {made.vocab_size_before:,} | {made.vocab_size:,} |" in "".join(capsys.readouterr())
    before, its_tokenizer = AutoModel.from_pretrained(student).eval(), AutoTokenizer.from_pretrained(student)
    line = texts.read_text().splitlines()[-1]
    with torch.no_grad():
        one = before(**its_tokenizer(line, return_tensors="pt")).last_hidden_state
        assert torch.equal(model(**loaded(line, return_tensors="pt")).last_hidden_state, one)


def test_an_embedder_stays_one(recipe, student, texts, tmp_path):
    SentenceHead("mean", [Normalize()], {"query": "bap "}, "query").save(student)
    recipe.main([str(student), "--trim_to", str(texts), "--heldout_sentences", "10"])
    before, after = (SentenceEncoder.from_pretrained(path) for path in (student, tmp_path / "student-compressed"))
    lines = texts.read_text().splitlines()[-4:]
    np.testing.assert_allclose(after.encode(lines), before.encode(lines), atol=1e-6)


def test_nothing_is_claimed_that_was_measured_of_other_weights(recipe, student, texts, tmp_path):
    recipe.main([str(student), "--trim_to", str(texts), "--embedding_size", "6", "--heldout_sentences", "10"])
    folder = tmp_path / "student-compressed"
    before, evidence = StudentEvidence.load(student), StudentEvidence.load(folder)
    assert before.evaluations
    assert before.latency
    assert before.search
    assert before.training.r2
    assert not evidence.evaluations
    assert not evidence.latency
    assert evidence.search is None
    assert evidence.training.r2 is None
    assert not evidence.training.r2_per_layer
    assert evidence.training.weights != before.training.weights
    assert evidence.training.texts == before.training.texts
    card = (folder / "README.md").read_text()
    assert "compressed after its distillation" in card
    assert "factorised from 16 to 6" in card
    assert f"{before.training.r2:.3f}" not in card
    assert not (folder / "evidence" / "latency.json").exists()


def test_the_smaller_student_can_be_published(recipe, student, texts, tmp_path):
    recipe.main([str(student), "--trim_to", str(texts), "--heldout_sentences", "10"])
    staged = stage_student(tmp_path / "student-compressed", tmp_path / "staged", without_scores=True)
    assert "evidence/compression.json" in staged.files
    assert staged.native
    assert len(AutoTokenizer.from_pretrained(staged.folder)) == staged.evidence.config.vocab_size


def test_embeddings_are_factorised_with_a_head(recipe, texts, tmp_path, tokenizer):
    config = KDNASConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    KDNASForSequenceClassification(config).save_pretrained(tmp_path / "headed")
    tokenizer.save_pretrained(tmp_path / "headed")
    arguments = ["--embedding_size", "12", "--dataset", str(texts), "--heldout_sentences", "10"]
    recipe.main([str(tmp_path / "headed"), *arguments, "--output_dir", str(tmp_path / "small")])
    made = json.loads((tmp_path / "small" / "evidence" / "compression.json").read_text())
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["architectures"] == ["KDNASForSequenceClassification"]
    assert config["embedding_size"] == made["embedding_size"] == 12
    assert 0.5 < made["kept_variance"] < 1
    assert made["split_alike"] == 1
    assert 0.8 < made["cosine"] < 1
    assert made["lowest_cosine"] <= made["cosine"]


def test_the_measure_sees_a_worse_student(recipe, student, texts, tmp_path):
    found = []
    for size in ("15", "2"):
        folder = tmp_path / size
        arguments = ["--embedding_size", size, "--dataset", str(texts), "--heldout_sentences", "10"]
        recipe.main([str(student), *arguments, "--output_dir", str(folder)])
        found.append(StudentEvidence.load(folder).compression)
    assert found[0].cosine > found[1].cosine
    assert found[0].r2 > found[1].r2
    assert found[0].kept_variance > found[1].kept_variance


def test_sentence_vectors_are_shortened_with_their_price(recipe, student, texts, tmp_path, capsys):
    SentenceHead("mean", [Normalize()], {"query": "bap: "}).save(student)
    arguments = ["--dataset", str(texts), "--heldout_sentences", "20", "--embedding_dimension", "8"]
    recipe.main([str(student), *arguments, "--trim_to", str(texts), "--output_dir", str(tmp_path / "short")])
    made = StudentEvidence.load(tmp_path / "short").compression
    assert (made.dimension_before, made.dimension) == (16, 8)
    assert list(made.neighbours_kept) == ["8", "4", "2", "1"]
    assert made.neighbours_kept["8"] > made.neighbours_kept["1"]
    before, now = (SentenceEncoder.from_pretrained(path) for path in (student, tmp_path / "short"))
    vectors = now.encode(["bap dit", "bep"], "query")
    assert vectors.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert before.encode(["bap"]).shape == (1, 16)
    assert "shortened from 16 to 8 dimensions" in (tmp_path / "short" / "README.md").read_text()
    assert "cut off after 4 dimensions" in "".join(capsys.readouterr())


@pytest.mark.parametrize(("dimension", "said"), [("17", "makes vectors of 16"), ("8", "no sentence vectors")])
def test_vectors_that_cannot_be_shortened_are_one_line(recipe, student, texts, tmp_path, dimension, said):
    if dimension == "17":
        SentenceHead("mean").save(student)
    with pytest.raises(ValueError, match=rf"^embedding_dimension={dimension}: student=.* {said}.*; choose fewer"):
        recipe.main([str(student), "--dataset", str(texts), "--embedding_dimension", dimension])
    assert not (tmp_path / "student-compressed").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do"),
        (["--embedding_size", "0"], "embedding_size=0"),
        (["--embedding_size", "4", "--keep_tokens", "a"], "needs trim_to"),
        (["--embedding_size", "4", "--output_dir", "."], "is not empty"),
        (["--embedding_size", "16", "--dataset", "{texts}", "--heldout_sentences", "10"], "choose from 1 to 15"),
    ],
)
def test_bad_input_is_named(recipe, student, texts, arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe.main([str(student), *(argument.format(texts=texts) for argument in arguments)])
    assert not student.with_name("student-compressed").exists()


def test_errors_are_one_message_without_a_traceback(tmp_path):
    result = subprocess.run(
        [sys.executable, str(RECIPE), str(tmp_path / "none"), "--embedding_size", "4"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert "error: student=" in result.stderr
    assert "Traceback" not in result.stderr
