"""Smaller word embeddings: the best approximation of the table, as text weighs it, and everything else carried."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel

from kdnas_hf.students import (
    KDNASConfig,
    KDNASForMaskedLM,
    KDNASForSequenceClassification,
    KDNASForTokenClassification,
    KDNASModel,
    TeacherEmbeddings,
    create_student,
    factorise_embeddings,
)
from tiny_teacher import make_teacher_model

IDS = torch.tensor([[0, 7, 8, 9, 2], [0, 30, 2, 1, 1]])
SHAPE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def make_student(kind=KDNASModel, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(KDNASConfig(**SHAPE | {"max_position_embeddings": 20} | changes)).eval()


def embedded(student):
    """What every token contributes to the hidden states, `(vocab_size, hidden_size)`."""
    embeddings = student.base_model.embeddings
    rows = embeddings.word_embeddings.weight
    rows = rows if embeddings.projection is None else embeddings.projection(rows)
    return (rows + embeddings.token_type_embeddings.weight[0]).detach()


def run(student):
    with torch.no_grad():
        return student(input_ids=IDS, attention_mask=IDS.ne(1).long())


@pytest.mark.parametrize("kind", [KDNASModel, KDNASForSequenceClassification, KDNASForTokenClassification])
def test_a_table_of_low_rank_is_kept_whole(kind):
    student = make_student(kind)
    table = student.get_input_embeddings().weight
    with torch.no_grad():
        table.copy_(torch.randn(40, 5) @ torch.randn(5, 16) + torch.randn(16))  # of rank 5 about a mean
    found = factorise_embeddings(student, 5)
    assert type(found.student) is kind
    assert found.student.config.embedding_size == found.embedding_size == 5
    assert found.embedding_size_before == 16
    assert found.kept_variance == pytest.approx(1)
    torch.testing.assert_close(embedded(found.student), embedded(student), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(run(found.student)[0], run(student)[0], atol=1e-3, rtol=1e-3)
    assert student.config.embedding_size is None


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 15))
def test_nothing_approximates_the_weighted_rows_better(seed, size):
    rng = np.random.default_rng(seed)
    student = make_student()
    counts = rng.integers(0, 50, 40) + (np.arange(40) == 3)
    found = factorise_embeddings(student, size, counts)
    error = embedded(found.student) - embedded(student)
    loss = float((torch.from_numpy(counts)[:, None] * error.double() ** 2).sum())
    # Eckart and Young: what a singular value decomposition of the weighted, centred rows leaves out
    rows = embedded(student).double().numpy()
    centred = np.sqrt(counts)[:, None] * (rows - counts @ rows / counts.sum())
    singular = np.linalg.svd(centred, compute_uv=False)
    assert loss == pytest.approx((singular[size:] ** 2).sum(), rel=1e-3, abs=1e-6)
    assert found.kept_variance == pytest.approx((singular[:size] ** 2).sum() / (singular**2).sum(), abs=1e-6)


def test_factorised_embeddings_are_factorised_further():
    student = make_student(embedding_size=8)
    found = factorise_embeddings(student, 4)
    again = factorise_embeddings(factorise_embeddings(student, 6).student, 4)
    torch.testing.assert_close(embedded(found.student), embedded(again.student), atol=1e-5, rtol=1e-4)
    assert found.embedding_size_before == 8
    centred = embedded(student) - embedded(student).mean(0)
    kept = torch.linalg.svdvals(centred)[:4].square().sum() / centred.square().sum()
    assert found.kept_variance == pytest.approx(float(kept), abs=1e-5)


def test_stock_students_become_students():
    stock = make_teacher_model().eval()
    found = factorise_embeddings(stock, 31)
    assert isinstance(found.student, KDNASModel)
    torch.testing.assert_close(run(found.student)[0], run(stock)[0], atol=0.5, rtol=0.1)


def test_inherited_embeddings_are_factorised():
    config = KDNASConfig(**SHAPE | {"vocab_size": 145})
    student = create_student(config, TeacherEmbeddings.from_teacher(make_teacher_model()))
    found = factorise_embeddings(student, 15)
    folded = student.get_input_embeddings().weight
    rows = embedded(found.student) - student.embeddings.token_type_embeddings.weight[0]
    assert float((rows - folded).square().sum() / folded.square().sum()) < 0.1
    assert found.student.training  # as the student was


def test_it_comes_back_from_a_checkpoint_and_trains(tmp_path):
    small = factorise_embeddings(make_student(), 6).student
    small.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(run(loaded)[0], run(small)[0])
    small.train()(input_ids=IDS).last_hidden_state.square().sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((16,), "embedding_size=16 makes word embeddings of size 16 no smaller; choose from 1 to 15"),
        ((0,), "embedding_size=0"),
        ((4.0,), "embedding_size=4.0"),
        ((4, np.ones(39)), r"shape \(39,\); a vocab_size=40"),
        ((4, np.zeros(40)), "not all of them zero"),
        ((4, -np.ones(40)), "at least zero"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        factorise_embeddings(make_student(), *arguments)


def test_a_head_that_decodes_is_refused():
    with pytest.raises(ValueError, match="add_masked_lm_head"):
        factorise_embeddings(make_student(KDNASForMaskedLM), 4)
