"""Probes against what is known of constructed states."""

import pytest
import torch
from tiny_tasks import save_tiny_student, write_rows

from kdnas_hf import Task, load_task_data
from kdnas_hf.evaluation import ModelSource, linear_r2, probe_models, probe_texts, retrieval_accuracy
from kdnas_hf.evaluation.probes import nearest
from tiny_teacher import make_texts


def states(seed, count=60, size=8):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, size, generator=generator) for _ in range(count)]


def test_a_linear_image_is_explained_wholly_and_noise_not_at_all():
    inputs = states(0)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    assert linear_r2(inputs, [x @ turn * 3 + 1 for x in inputs]) > 0.99
    assert linear_r2(inputs, states(2)) < 0.05


def test_r2_is_the_share_of_the_variance_that_is_explained():
    inputs, noise = states(0, 4000), states(3, 4000)
    # as much noise as signal
    assert linear_r2(inputs, [x + n for x, n in zip(inputs, noise, strict=True)]) == pytest.approx(0.5, abs=0.02)


def test_r2_needs_text_to_score():
    with pytest.raises(ValueError, match="two texts or more"):
        linear_r2(states(0, 1), states(0, 1))


def test_nearest_is_never_the_vector_itself():
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), dim=-1)
    assert nearest(vectors).tolist() == [1, 0, 1]


def test_retrieval_both_ways():
    a = torch.eye(4)
    assert retrieval_accuracy({"en": a, "de": a}) == 1
    # in one language two texts changed places
    assert retrieval_accuracy({"en": a, "de": a[[1, 0, 2, 3]]}) == pytest.approx(0.5)
    assert retrieval_accuracy({"en": a, "de": a, "fr": a[[1, 0, 2, 3]]}) == pytest.approx(0.75)


@pytest.fixture
def pairs(tmp_path):
    """XNLI-like data, parallel in two languages; in a third a row was left out."""
    for language, seed in (("en", 1), ("de", 2), ("fr", 3)):
        texts = make_texts(60, seed)
        rows = [{"premise": texts[n - n % 3], "hypothesis": texts[n], "label": n % 3} for n in range(60)]
        if language == "fr":
            rows[4]["hypothesis"] = ""
        write_rows(tmp_path / "data", f"xnli-{language}-test", rows)
    write_rows(tmp_path / "data", "xnli-en-train", rows)
    return load_task_data(Task.load("xnli"), tmp_path / "data")


def test_parallel_texts_are_those_of_whole_sets(pairs):
    texts = probe_texts([pairs])
    assert list(texts.parallel) == ["en", "de"]
    assert texts.parallel["de"] == [example.text_pair for example in pairs.test["de"].examples]
    assert len(texts.texts) == len(set(texts.texts))


def test_a_teacher_is_its_own_best_student(teacher_path, tmp_path, tokenizer, pairs):
    student = save_tiny_student(tmp_path / "student", tokenizer)
    sources = {"teacher": ModelSource(str(teacher_path)), "student": ModelSource(str(student))}
    found = probe_models(sources, sources["teacher"], probe_texts([pairs]), max_length=32)
    assert found["teacher"].r2 > 0.99
    assert found["teacher"].nearest_neighbour_overlap == 1
    assert found["student"].r2 < 0.99
    assert 0 <= found["student"].nearest_neighbour_overlap < 1
    assert found["student"].retrieval is not None
    assert "60 parallel texts, en against de" in found["student"].method
