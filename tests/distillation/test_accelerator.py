"""A pool on an accelerator: each student as if alone, whatever the precision. Skipped where there is none."""

import pytest
import torch

from kdnas_hf import DistillationTrainer, DistillationTrainingArguments, KDNASConfig, StudentPool, Teacher
from tiny_teacher import make_teacher_model, make_texts, make_tokenizer, tokenized

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def config(hidden, layers=2, ffn=48):
    return KDNASConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=ffn,
        max_position_embeddings=66, vocab_size=make_teacher_model().config.vocab_size,
    )  # fmt: skip


def train(folder, students, batch=8, **kwargs):
    teacher = Teacher(make_teacher_model(), make_tokenizer())
    arguments = {"max_steps": 12, "statistics_sentences": 32, "learning_rate": 5e-3, "save_strategy": "no"} | kwargs
    args = DistillationTrainingArguments(
        output_dir=str(folder), report_to="none", disable_tqdm=True, per_device_train_batch_size=batch, **arguments
    )
    texts = tokenized(teacher.tokenizer, make_texts(128, seed=1))
    pool = StudentPool.create(students, teacher, args)
    trainer = DistillationTrainer(pool, teacher, args, texts, tokenized(teacher.tokenizer, make_texts(32, seed=2)))
    return trainer


def weights(trainer, name):
    return {key: p.detach().cpu() for key, p in trainer.pool.members[name].named_parameters() if p.requires_grad}


@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"fp16": True}])
def test_a_student_in_a_pool_learns_what_it_learns_alone(tmp_path, precision):
    students = {"a": config(16), "b": config(24), "c": config(32, 3)}
    together = train(tmp_path / "pool", students, **precision)
    together.train()
    alone = train(tmp_path / "alone", {"b": config(24)}, **precision)
    alone.train()
    for key, value in weights(alone, "b").items():
        torch.testing.assert_close(weights(together, "b")[key], value, rtol=1e-4, atol=1e-5)


def test_an_overflow_in_fp16_is_nobody_elses(tmp_path):
    students = {"cold": config(16), "hot": config(24)}
    trainer = train(tmp_path / "pool", students, fp16=True)
    trainer.pool.members["hot"].scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    trainer.train()
    alone = train(tmp_path / "alone", {"cold": config(16)}, fp16=True)
    alone.train()
    assert trainer.pool.dropped == {}
    assert trainer.pool.members["hot"].scaler.get_scale() < 2.0**40
    assert trainer.pool.members["cold"].scaler.get_scale() == 2.0**16
    for key, value in weights(alone, "cold").items():
        torch.testing.assert_close(weights(trainer, "cold")[key], value, rtol=1e-4, atol=1e-5)


def test_the_random_state_of_the_device_is_left_alone(tmp_path):
    trainer = train(tmp_path, {"student": config(16)}, losses=["masked_lm"])
    torch.cuda.manual_seed(7)
    before = torch.cuda.get_rng_state()
    loader = trainer.get_train_dataloader()
    trainer.get_batch_samples(iter(loader), 1, trainer.args.device)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_outputs_are_computed_and_not_stored_on_an_accelerator(tmp_path):
    trainer = train(tmp_path, {"student": config(16)}, num_train_epochs=3, max_steps=-1)
    trainer.train()
    assert "faster than the disk" in (tmp_path / "targets.json").read_text()
