"""`DistillationTrainer` with every loss: by name, with weights, together."""

import pytest
import torch
from test_trainer import Losses, arguments, assert_same_weights, config_of, make, weights
from transformers import AutoModelForMaskedLM, XLMRobertaForMaskedLM

from kdnas_hf import KDNASForMaskedLM, Teacher, load_teacher
from kdnas_hf.distillation.losses import relation_loss
from tiny_teacher import make_teacher_model


def teacher_with_masked_lm(tokenizer):
    """A tiny teacher with the head of a masked language model."""
    encoder = make_teacher_model()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = XLMRobertaForMaskedLM(encoder.config)
    model.roberta = encoder
    model.tie_weights()
    return Teacher(model.base_model, tokenizer, name="tiny teacher", masked_lm=model)


@pytest.fixture
def masked_lm_teacher(tokenizer):
    return teacher_with_masked_lm(tokenizer)


EVERY_LOSS = ["hidden_states", "cosine", "relations", "attention_maps", "logits", "masked_lm"]


@pytest.mark.parametrize(("loss", "init"), list(zip(EVERY_LOSS, ["random", "embeddings"] * 3, strict=True)))
def test_every_loss_falls_on_heldout_text(loss, init, masked_lm_teacher, train_texts, heldout_texts, tmp_path):
    if loss == "masked_lm":  # texts of random words: no word can be told from the others, only learnt by heart
        train_texts = heldout_texts = train_texts.select(range(16))
    trainer = make(
        masked_lm_teacher, tmp_path, train_texts, heldout_texts, losses=[loss], max_steps=50, student_init=init
    )
    key = f"eval_{loss}_loss"
    before = trainer.evaluate()[key]
    trainer.train()
    assert trainer.evaluate()[key] < 0.97 * before


def test_the_gradient_of_weighted_losses_is_the_weighted_sum_of_their_gradients(
    masked_lm_teacher, train_texts, tmp_path
):
    def gradients(losses):
        trainer = make(masked_lm_teacher, tmp_path, train_texts, losses=losses, max_grad_norm=0.0)
        trainer.pool.eval()
        inputs = trainer.data_collator([{"input_ids": row["input_ids"]} for row in train_texts.select(range(4))])
        trainer.compute_loss(trainer.pool, inputs).backward()
        return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in trainer.pool.named_parameters()}

    both = gradients(["hidden_states:0.25 relations:3 attention_maps:0.5"])
    parts = [(0.25, gradients(["hidden_states"])), (3, gradients(["relations"])), (0.5, gradients(["attention_maps"]))]
    for name, value in both.items():
        torch.testing.assert_close(value, sum(weight * part[name] for weight, part in parts if name in part))
    assert any(value.abs().sum() > 0 for value in both.values())


@pytest.mark.parametrize("losses", [["relations", "attention_maps"], ["logits", "masked_lm"]])
def test_accumulated_micro_batches_equal_one_big_batch(losses, masked_lm_teacher, train_texts, tmp_path, monkeypatch):
    # the same tokens are masked however the batch is cut
    from transformers import DataCollatorForLanguageModeling

    def mask(self, inputs, special_tokens_mask=None, **kwargs):
        labels = inputs.clone()
        chosen = (inputs % 5 == 0) & (inputs > 3)
        labels[~chosen] = -100
        return inputs.masked_fill(chosen, self.tokenizer.mask_token_id), labels

    monkeypatch.setattr(DataCollatorForLanguageModeling, "torch_mask_tokens", mask)
    results = []
    for size, accumulation in ((16, 1), (4, 4)):
        trainer = make(
            masked_lm_teacher, tmp_path, train_texts, losses=losses, per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation, max_steps=3,
        )  # fmt: skip
        trainer.train()
        results.append(weights(trainer, "deep"))
    assert_same_weights(*results, rtol=1e-4, atol=1e-5)


def test_relations_are_those_of_the_last_student_layer_and_the_named_teacher_layer(teacher, heldout_texts, tmp_path):
    trainer = make(
        teacher, tmp_path, heldout_texts, heldout_texts, losses=["relations"], relation_heads=8,
        relation_teacher_layer=3,
    )  # fmt: skip
    student, total, tokens = trainer.student.eval(), 0.0, 0
    with torch.no_grad():
        for row in heldout_texts:
            ids = torch.tensor([row["input_ids"]])
            mask = torch.ones_like(ids)
            states = student(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
            attention = student.encoder.layer[-1].attention.self
            teacher_states = teacher.hidden_states(ids, mask, [2])[2]
            teacher_attention = teacher.model.encoder.layer[2].attention.self
            total += relation_loss(
                [attention.query(states), attention.key(states), attention.value(states)],
                [getattr(teacher_attention, name)(teacher_states) for name in ("query", "key", "value")],
                mask,
                8,
                1,
            ).item()
            tokens += ids.numel()
    assert trainer.evaluate()["eval_relations_loss"] == pytest.approx(total / tokens, rel=1e-4)


def test_without_a_teacher_in_the_losses_the_teacher_is_not_called(teacher, train_texts, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the teacher was called")

    monkeypatch.setattr(Teacher, "__call__", refuse)
    trainer = make(teacher, tmp_path, train_texts, losses=["masked_lm"], max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_student_with_a_head_is_saved_with_it(masked_lm_teacher, train_texts, heldout_texts, tmp_path):
    trainer = make(masked_lm_teacher, tmp_path / "run", train_texts, losses=["hidden_states", "logits"], max_steps=3)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    trained = trainer.pool.models["deep"].eval()
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved").eval()
    assert isinstance(loaded, KDNASForMaskedLM)
    ids = torch.tensor([heldout_texts[0]["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, trained(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_evaluation_masks_the_same_tokens_each_time(masked_lm_teacher, train_texts, heldout_texts, tmp_path):
    trainer = make(masked_lm_teacher, tmp_path, train_texts, heldout_texts, losses=["masked_lm", "hidden_states"])
    first = trainer.evaluate()
    torch.manual_seed(4)
    assert trainer.evaluate()["eval_masked_lm_loss"] == first["eval_masked_lm_loss"]


def test_resuming_with_masked_tokens_changes_nothing(masked_lm_teacher, train_texts, tmp_path):
    def run(folder, **kwargs):
        log = Losses()
        trainer = make(
            masked_lm_teacher, folder, train_texts, losses=["logits", "hidden_states"], callbacks=[log],
            save_strategy="steps", save_steps=4, logging_steps=1,
        )  # fmt: skip
        trainer.train(**kwargs)
        return weights(trainer, "deep"), log.values

    whole, losses = run(tmp_path / "a")
    resumed, rest = run(tmp_path / "a", resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert_same_weights(whole, resumed)
    assert rest == losses[4:]


def test_the_loss_is_the_weighted_sum_of_all_losses(masked_lm_teacher, train_texts, heldout_texts, tmp_path):
    weighted = {"hidden_states": 0.5, "cosine": 2.0, "masked_lm": 3.0}
    metrics = make(
        masked_lm_teacher, tmp_path, train_texts, heldout_texts, students=("small", "deep"),
        losses=[f"{name}:{weight}" for name, weight in weighted.items()],
    ).evaluate()  # fmt: skip
    found = [sum(w * metrics[f"eval_{who}_{name}_loss"] for name, w in weighted.items()) for who in ("small", "deep")]
    assert found == pytest.approx([metrics["eval_small_loss"], metrics["eval_deep_loss"]], rel=1e-6)
    assert metrics["eval_loss"] == pytest.approx(sum(found) / 2, rel=1e-6)  # of a pool: the mean
    errors = [metrics[f"eval_small_{name}_loss"] for name in weighted]
    errors = [1 - metrics["eval_small_r2"], errors[1] / (1 + errors[1]), errors[2] / (1 + errors[2])]
    error = sum(weight * error for weight, error in zip(weighted.values(), errors, strict=True))
    assert metrics["eval_small_error"] == pytest.approx(error / sum(weighted.values()), rel=1e-6)


def test_a_teacher_with_its_head_is_loaded_from_a_checkpoint(masked_lm_teacher, tokenizer, tmp_path):
    masked_lm_teacher.masked_lm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_teacher(str(tmp_path), head="masked_lm")
    ids = torch.tensor([[0, 7, 9, 2]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.masked_lm(ids).logits, masked_lm_teacher.masked_lm(ids).logits)
    assert loaded.model is loaded.masked_lm.base_model


def test_what_the_losses_need_is_asked_for_before_anything_slow(teacher, teacher_path, train_texts, tmp_path):
    with pytest.raises(ValueError, match="'logits' needs a teacher with its masked language modeling head"):
        make(teacher, tmp_path, train_texts, losses=["logits"])
    with pytest.raises(ValueError, match="relation_teacher_layer=5: the teacher has layers 1 to 4"):
        make(teacher, tmp_path, train_texts, losses=["relations"], relation_teacher_layer=5)
    with pytest.raises(ValueError, match="has no masked language modeling head"):
        load_teacher(str(teacher_path), head="masked_lm")
    with pytest.raises(ValueError, match="did you mean 'relations'"):
        arguments(tmp_path, losses=["relation:1"])
    for field, value in {
        "temperature": 0.0,
        "mlm_probability": 1.0,
        "relation_heads": -1,
    }.items():
        with pytest.raises(ValueError, match=field):
            arguments(tmp_path, **{field: value})


def test_random_students_keep_a_tied_head(teacher, train_texts, tmp_path):
    trainer = make(teacher, tmp_path, train_texts, losses=["masked_lm"], student_init="random")
    model = trainer.pool.models["deep"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.vocab_size == config_of("deep", teacher).vocab_size
