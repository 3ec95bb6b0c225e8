"""The loss on sentence vectors: its value by hand, where its map starts, and what it measures."""

from types import SimpleNamespace

import pytest
import torch
from given_states import STUDENT_SIZE, TEACHER_SIZE, make_states
from torch import nn

from kdnas_hf.distillation import LossSetting
from kdnas_hf.distillation.losses import LossArguments, sentence_vector_loss
from kdnas_hf.distillation.losses.sentence_vectors import SentenceVectorsLoss, similarities
from kdnas_hf.utils.sentence_head import Normalize, SentenceHead

ONES = {name: torch.ones(()) for name in ("squared_error", "cosine", "similarity")}


def make_loss(head, student_size=STUDENT_SIZE, basis=None, **arguments):
    setting = LossSetting(
        args=LossArguments(**arguments),
        student=SimpleNamespace(config=SimpleNamespace(hidden_size=student_size)),
        teacher=SimpleNamespace(
            dimensions=SimpleNamespace(hidden_size=TEACHER_SIZE), sentence_head=head, name="the teacher"
        ),
        pairs=(),
        basis=basis,
    )
    return SentenceVectorsLoss(setting)


def make_batch(head, lengths=(4, 2, 3), seed=0, student_size=STUDENT_SIZE):
    student, batch = make_states(lengths, seed, student_size=student_size)
    batch.teacher.sentence_vectors = head(batch.teacher.hidden_states[4], batch.attention_mask)
    batch.num_texts = torch.tensor(float(len(lengths)))
    return student, batch


def test_value_by_hand():
    vectors, targets = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    # of vectors: 2 and 1; of cosines: 1 and 0; of similarities: 0 against 1, for either text
    for term, expected in (("squared_error", 3.0), ("cosine", 1.0), ("similarity", 2.0)):
        value = sentence_vector_loss(vectors, targets, {term: 0.5}, ONES | {term: torch.tensor(2.0)})
        assert value.item() == pytest.approx(expected / 4), term
    both = sentence_vector_loss(vectors, targets, {"squared_error": 1.0, "cosine": 2.0}, ONES)
    assert both.item() == pytest.approx(5.0)


def test_a_text_alone_has_no_similarities():
    one = torch.tensor([[1.0, 2.0]])
    assert sentence_vector_loss(one, -one, {"similarity": 1.0}, ONES) == 0


def test_losses_of_the_parts_of_a_batch_add_up():
    head = SentenceHead("mean", [Normalize()])
    loss = make_loss(head)
    parts = [make_batch(head, lengths, seed) for seed, lengths in enumerate([(4, 2), (3,)])]
    total = sum(len(batch.input_ids) for _, batch in parts)
    for _, batch in parts:
        batch.num_texts = torch.tensor(float(total))
    alone = [
        sentence_vector_loss(loss.vectors(student), batch.teacher.sentence_vectors, loss.terms, ONES) / total
        for student, batch in parts
    ]
    assert sum(loss(*part) for part in parts).item() == pytest.approx(sum(alone).item(), rel=1e-6)


@pytest.mark.parametrize("normalizes", [False, True])
def test_the_map_starts_at_least_squares_and_terms_at_one(normalizes):
    head = SentenceHead("mean", [Normalize()] if normalizes else [])
    loss = make_loss(head, sentence_terms=["squared_error", "cosine", "similarity"])
    batches = [make_batch(head, (5, 3, 4, 2), seed) for seed in range(40)]
    loss.fit(batches)
    targets = torch.cat([batch.teacher.sentence_vectors for _, batch in batches])
    scale = targets.var(0, unbiased=False).sum()
    torch.testing.assert_close(loss.scale_of_squared_error, scale)
    # nothing is to be learned from random states: the map gives the mean, whose error is the variance
    error = torch.cat([loss.vectors(s) - b.teacher.sentence_vectors for s, b in batches]).square().sum(1).mean()
    if not normalizes:
        assert (error / scale).item() == pytest.approx(1.0, abs=0.1)
    off_diagonal = similarities(targets)[~torch.eye(len(targets), dtype=torch.bool)]
    torch.testing.assert_close(loss.scale_of_similarity, off_diagonal.var(unbiased=False))


def test_a_student_in_the_teachers_basis_starts_without_error():
    head = SentenceHead("mean", [Normalize()])
    loss = make_loss(head, student_size=TEACHER_SIZE, basis=torch.eye(TEACHER_SIZE))
    batches = [make_batch(head, (5, 3, 4, 2), seed, TEACHER_SIZE) for seed in range(20)]
    for student, batch in batches:  # the student's states are the teacher's
        student.hidden_states[-1].copy_(batch.teacher.hidden_states[4])
    raw = make_loss(SentenceHead("mean"), student_size=TEACHER_SIZE, basis=torch.eye(TEACHER_SIZE))
    for _, batch in batches:
        batch.teacher.sentence_vectors = raw.head.followed_by()(batch.teacher.hidden_states[4], batch.attention_mask)
    raw.fit(batches)
    assert max(raw(*batch).item() for batch in batches) < 1e-6
    assert loss.head.normalizes


def test_measures_are_those_of_all_texts():
    head = SentenceHead("mean", [nn.Linear(TEACHER_SIZE, 4), nn.Tanh()])
    loss = make_loss(head)
    assert loss.head.dimension(STUDENT_SIZE) == 4
    batches = [make_batch(head, (5, 3, 4), seed) for seed in range(6)]
    measure = loss.measure()
    with torch.no_grad():
        for student, batch in batches:
            batch.num_texts = torch.ones(())
            measure.add(student, batch)
        found = measure.metrics()
        vectors = torch.cat([loss.vectors(student) for student, _ in batches])
    targets = torch.cat([batch.teacher.sentence_vectors for _, batch in batches])
    errors = (vectors - targets).square().sum()
    assert found["vector_r2"] == pytest.approx(
        1 - (errors / (targets - targets.mean(0)).square().sum()).item(), rel=1e-4
    )
    assert found["error"] == pytest.approx(1 - found["vector_r2"])
    assert found["cosine"] == pytest.approx(nn.functional.cosine_similarity(vectors, targets).mean().item(), rel=1e-4)
    assert found["loss"] == pytest.approx((errors / len(targets)).item(), rel=1e-4)


def test_a_teacher_without_sentence_vectors_is_refused():
    with pytest.raises(ValueError, match=r"losses: 'sentence_vectors' needs .* the teacher has no modules\.json"):
        make_loss(None)


@pytest.mark.parametrize("terms", [["squared_errors"], ["similarity:-1"], []])
def test_terms_that_are_none_are_refused(terms):
    with pytest.raises(ValueError, match="sentence_terms"):
        LossArguments(sentence_terms=terms).check_loss_arguments()
