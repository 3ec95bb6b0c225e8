"""Students that start from least squares: what is fitted is the ridge regression, and no more than that."""

import pytest
import torch
from test_trainer import arguments, config_of, make, weights

from kdnas_hf import DistillationTrainer, KDNASConfig, KDNASModel, Teacher
from tiny_teacher import make_teacher_model


def test_fitted_projections_are_the_ridge_regression_of_the_targets(teacher, train_texts, tmp_path):
    texts = train_texts.select(range(40))
    trainer = make(teacher, tmp_path, texts, students=("wide",), max_steps=1, statistics_sentences=40)
    member = trainer.pool.members["wide"].eval()
    states, targets = {1: [], 2: []}, {1: [], 2: []}
    with torch.no_grad():
        for row in texts:
            ids = torch.tensor([row["input_ids"]])
            mask = torch.ones_like(ids)
            hidden = member.student(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
            for student, layer in member.pairs:
                states[student].append(hidden[student][0])
                target = teacher.hidden_states(ids, mask, [layer])[layer][0]
                targets[student].append(trainer.statistics.standardize(layer, target))
    for layer in states:
        x, y = torch.cat(states[layer]).double(), torch.cat(targets[layer]).double()
        x1 = torch.cat([x, torch.ones(len(x), 1)], dim=1)
        penalty = torch.eye(x1.shape[1], dtype=torch.float64) * 0.01 * x.square().sum(0).mean()
        penalty[-1, -1] = 0
        solution = torch.linalg.inv(x1.T @ x1 + penalty) @ x1.T @ y
        linear = member.projections.maps[str(layer)]
        torch.testing.assert_close(linear.weight.double(), solution[:-1].T, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(linear.bias.double(), solution[-1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("init", ["embeddings", "random", "teacher"])
def test_a_fitted_start_explains_more_of_the_teacher(init, teacher, train_texts, heldout_texts, tmp_path):
    r2 = {}
    for projection in ("fit", "basis", "random"):
        trainer = make(
            teacher, tmp_path, train_texts, heldout_texts, student_init=init, projection_init=projection,
            statistics_sentences=256,
        )  # fmt: skip
        r2[projection] = trainer.evaluate()["eval_r2"]
    assert r2["fit"] > 0
    assert r2["fit"] > max(r2["basis"], r2["random"])


def test_layers_are_copied_from_the_mapped_layers_of_the_teacher(teacher, train_texts, heldout_texts, tmp_path):
    shape = KDNASConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, max_position_embeddings=66,
        vocab_size=teacher.dimensions.vocab_size,
    )  # fmt: skip
    starts = {}
    for init in ("embeddings", "teacher"):
        trainer = DistillationTrainer(
            model=shape, teacher=teacher, train_dataset=train_texts, eval_dataset=heldout_texts,
            args=arguments(tmp_path, student_init=init, statistics_sentences=256),
        )  # fmt: skip
        starts[init] = trainer.student
        assert trainer.evaluate()["eval_r2"] > 0.9
    # neurons are chosen by importance, but a student of as many keeps them all, in their order
    basis = teacher.embeddings.basis
    for number, layer in enumerate(teacher.model.encoder.layer):
        wanted = layer.intermediate.dense.weight @ basis
        copied = starts["teacher"].encoder.layer[number].intermediate.dense.weight
        plain = starts["embeddings"].encoder.layer[number].intermediate.dense.weight
        assert similarity(copied, wanted) > 0.5 > similarity(plain, wanted)


def similarity(first, second):
    """Mean cosine of the neurons' input weights."""
    return float(torch.nn.functional.cosine_similarity(first, second, dim=1).mean())


def test_each_student_of_a_pool_starts_as_if_alone(teacher, train_texts, tmp_path):
    pool = make(teacher, tmp_path, train_texts, students=("deep", "wide"), student_init="teacher")
    for name in ("deep", "wide"):
        alone = weights(make(teacher, tmp_path, train_texts, students=(name,), student_init="teacher"), name)
        for key, value in weights(pool, name).items():
            torch.testing.assert_close(value, alone[key], rtol=1e-4, atol=1e-4)


def test_a_student_that_is_given_keeps_its_weights(teacher, train_texts, tmp_path):
    given = KDNASModel(config_of("deep", teacher))
    before = {key: value.clone() for key, value in given.state_dict().items()}
    DistillationTrainer(
        model=given, teacher=teacher, args=arguments(tmp_path, student_init="teacher"), train_dataset=train_texts
    )
    for key, value in given.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_shared_projection_keeps_its_start(teacher, train_texts, tmp_path):
    fitted = make(teacher, tmp_path, train_texts, projection="shared", projection_init="fit")
    basis = make(teacher, tmp_path, train_texts, projection="shared", projection_init="basis")
    for key, value in weights(fitted, "deep").items():
        assert torch.equal(value, weights(basis, "deep")[key]), key


def test_the_teacher_does_not_change(teacher, train_texts, tmp_path):
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    make(teacher, tmp_path, train_texts, student_init="teacher")
    for key, value in teacher.model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_teacher_whose_layers_cannot_be_copied_is_refused(tokenizer, train_texts, tmp_path, monkeypatch):
    model = make_teacher_model()
    model.config.model_type = "roformer"
    with pytest.raises(ValueError, match="student_init='embeddings'"):
        make(Teacher(model, tokenizer, name="other"), tmp_path, train_texts, student_init="teacher")


def test_a_second_trainer_keeps_what_was_learnt(teacher, train_texts, heldout_texts, tmp_path):
    first = make(teacher, tmp_path, train_texts, heldout_texts, student_init="teacher")
    first.train()
    learnt = weights(first, "deep")
    second = DistillationTrainer(
        model=first.pool, teacher=teacher, train_dataset=train_texts, eval_dataset=heldout_texts,
        args=arguments(tmp_path, student_init="teacher"), statistics=first.statistics,
    )  # fmt: skip
    for key, value in weights(second, "deep").items():
        assert torch.equal(value, learnt[key]), key
    assert second.evaluate()["eval_r2"] == pytest.approx(first.evaluate()["eval_r2"], rel=1e-5)


def test_fits_are_not_rounded_by_autocast(teacher, train_texts, tmp_path):
    half = make(teacher, tmp_path, train_texts, bf16=True, teacher_dtype="float32")
    full = make(teacher, tmp_path, train_texts)
    for key, value in weights(half, "deep").items():
        if "projections.maps" in key:
            torch.testing.assert_close(value, weights(full, "deep")[key], rtol=0.1, atol=0.1)
