"""The teacher: frozen, dimensions of any encoder, refusals, statistics."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
)

from kdnas_hf.distillation import HiddenStateStatistics, Teacher, TeacherDimensions, load_teacher
from tiny_teacher import make_teacher_model, make_texts

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
}
SPECIAL = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}

ENCODERS = {
    "bert": (BertModel, BertConfig(**SMALL, pad_token_id=1)),
    "roberta": (RobertaModel, RobertaConfig(**SMALL, **SPECIAL)),
    "modernbert": (ModernBertModel, ModernBertConfig(**SMALL, **SPECIAL, cls_token_id=0, sep_token_id=2)),
    "distilbert": (
        DistilBertModel,
        DistilBertConfig(vocab_size=300, dim=32, n_heads=4, hidden_dim=48, n_layers=3, pad_token_id=1),
    ),
}


@pytest.fixture(params=ENCODERS)
def encoder_path(request, tokenizer, tmp_path):
    model_class, config = ENCODERS[request.param]
    model_class(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def batch(tokenizer, count=4):
    return tokenizer(make_texts(count), padding=True, return_tensors="pt")


def test_any_encoder_loads_frozen_and_gives_states_of_every_layer(encoder_path, tokenizer):
    teacher = load_teacher(str(encoder_path))
    assert teacher.dimensions == TeacherDimensions(3, 32, 4, 300)
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not teacher.model.training
    inputs = batch(tokenizer)
    states = teacher.hidden_states(inputs["input_ids"], inputs["attention_mask"], [1, 3])
    expected = teacher.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    assert set(states) == {1, 3}
    torch.testing.assert_close(states[3], expected.last_hidden_state)
    assert states[1].shape == states[3].shape
    assert not torch.allclose(states[1], states[3])


def test_embeddings_of_any_encoder_can_be_inherited(encoder_path):
    embeddings = load_teacher(str(encoder_path)).embeddings
    assert embeddings.table.shape == (300, 32)
    torch.testing.assert_close(embeddings.basis.T @ embeddings.basis, torch.eye(32), atol=1e-5, rtol=0)


def test_a_student_of_any_encoder_trains(encoder_path, train_texts, tmp_path):
    from kdnas_hf import DistillationTrainer, DistillationTrainingArguments
    from kdnas_hf.search import Architecture, student_config

    teacher = load_teacher(str(encoder_path))
    args = DistillationTrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True
    )
    config = student_config(teacher, Architecture(2, 2, 8, 16, "gelu"))
    trainer = DistillationTrainer(config, teacher, args, train_texts, train_texts.select(range(20)))
    trainer.train()
    assert trainer.pool.active
    assert trainer.evaluate()["eval_loss"] < 1.5


def test_padding_late_in_the_vocabulary_costs_a_student_no_positions(tokenizer):
    """As in ModernBERT, whose padding token is number 50283."""
    from kdnas_hf.search import Architecture, student_config
    from tiny_teacher import make_tokenizer

    late = make_tokenizer()
    late.pad_token = "<mask>"
    config = student_config(Teacher(make_teacher_model(), late), Architecture(1, 2, 8, 16, "gelu"))
    assert config.pad_token_id == late.mask_token_id > 100
    assert config.max_tokens == 512
    assert student_config(Teacher(make_teacher_model(), tokenizer), Architecture(1, 2, 8, 16, "gelu")).max_tokens == 512


def test_a_checkpoint_with_a_head_is_a_teacher_too(tokenizer, tmp_path):
    from transformers import XLMRobertaForMaskedLM

    config = make_teacher_model().config
    XLMRobertaForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_teacher(str(tmp_path)).dimensions.num_layers == 4


def test_bf16_teacher_keeps_the_table_that_students_inherit_exact(tokenizer):
    model = make_teacher_model()
    table = model.get_input_embeddings().weight.detach().clone()
    teacher = Teacher(model, tokenizer, dtype=torch.bfloat16)
    assert {p.dtype for p in teacher.model.parameters()} == {torch.bfloat16}
    assert torch.equal(teacher.embeddings.table, table)
    inputs = batch(tokenizer)
    exact = Teacher(make_teacher_model(), tokenizer).hidden_states(**inputs_of(inputs), layers=[4])[4]
    rounded = teacher.hidden_states(**inputs_of(inputs), layers=[4])[4].float()
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=-1).min() > 0.99


def inputs_of(inputs):
    return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}


def test_a_decoder_is_refused(tokenizer, tmp_path):
    GPT2Model(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=64)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="one direction only; choose a bidirectional encoder"):
        load_teacher(str(tmp_path))


def test_an_encoder_decoder_is_refused(tmp_path):
    T5Config(d_model=32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is an encoder-decoder"):
        load_teacher(str(tmp_path))


def test_a_teacher_without_a_tokenizer_is_refused(tmp_path):
    make_teacher_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="fast tokenizer"):
        load_teacher(str(tmp_path))


def test_a_tokenizer_of_another_model_is_refused(tokenizer, tmp_path):
    make_teacher_model(vocabulary=50).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="do not belong together"):
        load_teacher(str(tmp_path))


def test_statistics_are_those_of_the_real_tokens(teacher, tokenizer):
    batches = [tokenizer(make_texts(6, seed=s), padding=True, return_tensors="pt") for s in range(3)]
    statistics = HiddenStateStatistics.estimate(teacher, batches, [2, 4])
    for layer in (2, 4):
        real = torch.cat(
            [
                teacher.hidden_states(b["input_ids"], b["attention_mask"], [layer])[layer][b["attention_mask"].bool()]
                for b in batches
            ]
        )
        torch.testing.assert_close(statistics.mean[layer], real.mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(statistics.std[layer], real.std(0, correction=0), atol=1e-5, rtol=1e-4)
        standardized = statistics.standardize(layer, real)
        torch.testing.assert_close(standardized.mean(0), torch.zeros(32), atol=1e-4, rtol=0)
        torch.testing.assert_close(standardized.std(0, correction=0), torch.ones(32), atol=1e-3, rtol=0)


def test_statistics_do_not_depend_on_the_order_of_the_corpus(teacher, tokenizer):
    """A corpus ordered by language must not be standardised by its first languages alone."""
    short = make_texts(1)
    texts = short * 200 + make_texts(200, seed=5)
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]
    sampled = HiddenStateStatistics.from_texts(teacher, rows, [4], count=100, batch_size=16)
    everything = HiddenStateStatistics.from_texts(teacher, rows, [4], count=400, batch_size=16)
    first = HiddenStateStatistics.from_texts(teacher, rows[:200], [4], count=100, batch_size=16)

    def distance(other):
        return float((other.mean[4] - everything.mean[4]).norm())

    assert distance(sampled) < 0.3 * distance(first)


def test_statistics_round_trip(teacher, tokenizer, tmp_path):
    statistics = HiddenStateStatistics.estimate(teacher, [batch(tokenizer)], [1, 3])
    statistics.save(tmp_path / "s.safetensors")
    loaded = HiddenStateStatistics.load(tmp_path / "s.safetensors")
    for layer in (1, 3):
        assert torch.equal(loaded.mean[layer], statistics.mean[layer])
        assert torch.equal(loaded.std[layer], statistics.std[layer])
