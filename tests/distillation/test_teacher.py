"""The teacher: any encoder, frozen; what it says about a batch, in any dtype; what is refused."""

import copy

import pytest
import torch
from tiny_runs import batch_of, run_arguments, student_shape, teacher_with_head, trained_parameters
from transformers import (
    AutoModel,
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
    XLMRobertaForMaskedLM,
)

from kdnas_hf import DistillationTrainer
from kdnas_hf.distillation import Required, Teacher, load_teacher, student_config
from kdnas_hf.students import Architecture
from kdnas_hf.utils.dimensions import TeacherDimensions
from tiny_teacher import make_teacher_model, make_texts, make_tokenizer, tokenized

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
    return batch_of(tokenizer, tokenized(tokenizer, make_texts(count)))


def say(teacher, read, dtype=None, **required):
    """What a teacher says about a batch."""
    required = {name: frozenset(what) if isinstance(what, list) else what for name, what in required.items()}
    return teacher(read.input_ids, read.attention_mask, Required(**required), dtype)


def test_any_encoder_loads_frozen_and_gives_states_of_every_layer(encoder_path, tokenizer):
    teacher = load_teacher(str(encoder_path))
    assert teacher.dimensions == TeacherDimensions(3, 32, 4, 300)
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not teacher.model.training
    read = batch(tokenizer)
    states = teacher.hidden_states(read.input_ids, read.attention_mask, [1, 2, 3])
    expected = teacher.model(read.input_ids, attention_mask=read.attention_mask, output_hidden_states=True)
    assert set(states) == {1, 2, 3}
    for layer in (1, 2):
        torch.testing.assert_close(states[layer], expected.hidden_states[layer])
    # behind the final norm, where there is one
    torch.testing.assert_close(states[3], expected.last_hidden_state)
    assert not torch.allclose(states[1], states[3])


def maps_of(layer):
    """How a layer makes queries, keys and values of what it reads, whatever its modules are called."""
    if hasattr(layer, "attn"):  # one map for all three, behind a norm
        return lambda states: layer.attn.Wqkv(layer.attn_norm(states)).chunk(3, dim=-1)
    if hasattr(layer.attention, "q_lin"):
        maps = layer.attention.q_lin, layer.attention.k_lin, layer.attention.v_lin
    else:
        maps = layer.attention.self.query, layer.attention.self.key, layer.attention.self.value
    return lambda states: [linear(states) for linear in maps]


def test_queries_keys_and_values_are_what_a_layer_makes_of_the_output_of_the_one_before(encoder_path, tokenizer):
    teacher = load_teacher(str(encoder_path))
    read = batch(tokenizer)
    made = say(teacher, read, queries_keys_values=[1, 3]).queries_keys_values
    model = teacher.model
    layers = model.layers if hasattr(model, "layers") else getattr(model, "encoder", None) or model.transformer
    layers = getattr(layers, "layer", layers)
    states = model(read.input_ids, attention_mask=read.attention_mask, output_hidden_states=True).hidden_states
    assert set(made) == {1, 3}
    for number, three in made.items():
        for one, expected in zip(three, maps_of(layers[number - 1])(states[number - 1]), strict=True):
            torch.testing.assert_close(one, expected)


def test_embeddings_of_any_encoder_can_be_inherited(encoder_path):
    embeddings = load_teacher(str(encoder_path)).embeddings
    assert embeddings.table.shape == (300, 32)
    torch.testing.assert_close(embeddings.basis.T @ embeddings.basis, torch.eye(32), atol=1e-5, rtol=0)


def test_a_student_of_any_encoder_trains(encoder_path, train_texts, tmp_path):
    teacher = load_teacher(str(encoder_path))
    args = run_arguments(tmp_path / "run", max_steps=2)
    config = student_config(teacher, Architecture(2, 2, 8, 16, "gelu"))
    trainer = DistillationTrainer(config, teacher, args, train_texts, train_texts.select(range(20)))
    trainer.train()
    assert trainer.pool.active
    assert trainer.evaluate()["eval_loss"] < 1.5


def test_padding_late_in_the_vocabulary_costs_a_student_no_positions(tokenizer):
    """As in ModernBERT, whose padding token is number 50283."""
    late = make_tokenizer()
    late.pad_token = "<mask>"
    config = student_config(Teacher(make_teacher_model(), late), Architecture(1, 2, 8, 16, "gelu"))
    assert config.pad_token_id == late.mask_token_id > 100
    assert config.max_tokens == 512
    assert student_config(Teacher(make_teacher_model(), tokenizer), Architecture(1, 2, 8, 16, "gelu")).max_tokens == 512


# ---- what it says about a batch ----


def test_maps_are_those_of_plain_attention_which_is_fused_again_afterwards(teacher, tokenizer):
    read = batch(tokenizer)
    before = say(teacher, read, hidden_states=[2]).hidden_states[2]
    implementation = teacher.model.config._attn_implementation
    outputs = say(teacher, read, hidden_states=[2], attention_maps=[1, 4])
    assert teacher.model.config._attn_implementation == implementation != "eager"
    assert torch.equal(say(teacher, read, hidden_states=[2]).hidden_states[2], before)
    torch.testing.assert_close(outputs.hidden_states[2], before)
    plain = make_teacher_model().eval()
    plain.set_attn_implementation("eager")
    maps = plain(read.input_ids, attention_mask=read.attention_mask, output_attentions=True).attentions
    assert set(outputs.attention_maps) == {1, 4}
    for layer, probabilities in outputs.attention_maps.items():
        torch.testing.assert_close(probabilities, maps[layer - 1])


@pytest.mark.parametrize("kind", ["texts", "tokens"])
def test_task_logits_are_those_of_the_fine_tuned_model(kind, tokenizer):
    teacher = teacher_with_head(kind, tokenizer)
    read = batch(tokenizer)
    outputs = say(teacher, read, task_logits=True, hidden_states=[4], queries_keys_values=[4])
    made = teacher.task_model(input_ids=read.input_ids, attention_mask=read.attention_mask)
    torch.testing.assert_close(outputs.task_logits, made.logits)
    assert set(outputs.hidden_states) == set(outputs.queries_keys_values) == {4}
    assert say(teacher, read, hidden_states=[4]).task_logits is None


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_token_logits_are_those_of_the_masked_language_model(dtype, tokenizer):
    teacher = teacher_with_head("masked_lm", tokenizer)
    read = batch(tokenizer)
    masked = torch.tensor([1, 3, len(read.input_ids[0]) + 2])
    states, weight, bias = teacher(
        read.input_ids, read.attention_mask, Required(token_logits=True), dtype, masked
    ).decoder
    expected = teacher.masked_lm(input_ids=read.input_ids, attention_mask=read.attention_mask).logits
    tolerance = {} if dtype is None else {"rtol": 0.1, "atol": 0.3}
    torch.testing.assert_close(
        states.float() @ weight.float().T + bias.float(), expected.flatten(0, 1)[masked], **tolerance
    )


# ---- in bf16 ----


def test_a_call_in_bf16_leaves_the_teacher_as_it_was(teacher, tokenizer):
    read = batch(tokenizer)
    weights = copy.deepcopy(teacher.model.state_dict())
    exact = say(teacher, read, hidden_states=[4]).hidden_states[4]
    rounded = say(teacher, read, torch.bfloat16, hidden_states=[4]).hidden_states[4]
    assert rounded.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(exact, rounded.float(), dim=-1).min() > 0.99
    assert not torch.equal(exact, rounded.float())
    assert torch.equal(say(teacher, read, hidden_states=[4]).hidden_states[4], exact)
    for name, value in teacher.model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights[name]), name
    assert torch.equal(teacher.embeddings.table, make_teacher_model().get_input_embeddings().weight)


def test_a_copy_in_bf16_looks_words_up_in_the_same_table(teacher, tokenizer):
    say(teacher, batch(tokenizer), torch.bfloat16, hidden_states=[4])
    say(teacher, batch(tokenizer), torch.bfloat16, hidden_states=[4])
    ((dtype, made),) = teacher._copies.items()
    table = made.get_input_embeddings().weight
    assert table is teacher.model.get_input_embeddings().weight
    others = [p for p in made.parameters() if p is not table]
    assert {p.dtype for p in others} == {dtype} == {torch.bfloat16}
    assert not any(len(p) == teacher.dimensions.vocab_size for p in others)


def test_maps_are_computed_in_the_dtype_of_the_weights(teacher, tokenizer):
    outputs = say(teacher, batch(tokenizer), torch.bfloat16, attention_maps=[1], hidden_states=[1])
    assert outputs.attention_maps[1].dtype == outputs.hidden_states[1].dtype == torch.float32


def test_trainers_of_one_teacher_do_not_disturb_each_other(tokenizer, train_texts, tmp_path):
    wanted = {
        "rounded": {"teacher_dtype": "bfloat16", "losses": ["hidden_states", "relations"]},
        "plain attention": {"losses": ["attention_maps"]},
        "exact": {"teacher_dtype": "float32", "losses": ["hidden_states"]},
    }

    def train(teacher, name):
        args = run_arguments(tmp_path, max_steps=2, statistics_sentences=16, **wanted[name])
        trainer = DistillationTrainer(student_shape(teacher), teacher, args, train_texts)
        trainer.train()
        return trained_parameters(trainer)

    alone = {name: train(Teacher(make_teacher_model(), tokenizer), name) for name in wanted}
    for order in (list(wanted), list(wanted)[::-1]):
        teacher = Teacher(make_teacher_model(), tokenizer)
        for name in order:
            for parameter, value in train(teacher, name).items():
                assert torch.equal(value, alone[name][parameter]), (order, name, parameter)


# ---- padding ----


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_targets_of_a_text_are_the_same_alone_and_in_a_batch(kind):
    """Also where the tokenizer that was given pads on the left: absolute positions would count the padding."""
    model_class, config = ENCODERS[kind]
    model = model_class(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6)
    left = make_tokenizer()
    left.padding_side = "left"
    teacher = Teacher(model, left)
    assert left.padding_side == "left"
    assert teacher.tokenizer.padding_side == "right"
    rows = sorted(tokenized(left, make_texts(4)), key=lambda row: len(row["input_ids"]))
    together = batch_of(teacher.tokenizer, rows)
    assert together.attention_mask[0].sum() < together.attention_mask.shape[1]
    alone = say(teacher, batch_of(teacher.tokenizer, rows[:1]), hidden_states=[3]).hidden_states[3][0]
    states = say(teacher, together, hidden_states=[3]).hidden_states[3][0]
    torch.testing.assert_close(states[: len(alone)], alone, rtol=1e-4, atol=1e-4)


def test_a_tokenizer_that_pads_on_the_right_is_shared(tokenizer):
    assert Teacher(make_teacher_model(), tokenizer).tokenizer is tokenizer


# ---- loading ----


def test_dimensions_are_checked_before_weights_are_loaded(teacher_path, monkeypatch):
    loaded, seen = [], []
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda *args, **kwargs: loaded.append(1) or 1 / 0)

    def refuse(dimensions):
        raise ValueError(f"a student of {dimensions.num_layers} layers")

    with pytest.raises(ValueError, match="a student of 4 layers"):
        load_teacher(str(teacher_path), check=refuse)
    assert not loaded
    with pytest.raises(ZeroDivisionError):
        load_teacher(str(teacher_path), check=seen.append)
    assert loaded
    assert seen == [TeacherDimensions(4, 32, 4, 145)]


def test_a_checkpoint_with_a_head_is_a_teacher_with_or_without_it(tokenizer, tmp_path):
    XLMRobertaForMaskedLM(make_teacher_model().config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    without = load_teacher(str(tmp_path))
    assert without.masked_lm is None
    assert without.dimensions.num_layers == 4
    teacher = load_teacher(str(tmp_path), head="masked_lm")
    assert teacher.model is teacher.masked_lm.base_model
    assert torch.equal(teacher.embeddings.table, without.embeddings.table)


def test_a_head_that_is_not_there_is_refused(teacher_path):
    with pytest.raises(ValueError, match="has no masked language modeling head .*; choose a teacher that has one"):
        load_teacher(str(teacher_path), head="masked_lm")
    with pytest.raises(ValueError, match="has no head for token_classification .*; fine-tune it on the task first"):
        load_teacher(str(teacher_path), head="token_classification")
    with pytest.raises(ValueError, match=r"head='tokens' is unknown; choose from task, masked_lm, sequence"):
        load_teacher(str(teacher_path), head="tokens")


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
