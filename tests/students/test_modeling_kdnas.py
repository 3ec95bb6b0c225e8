"""The models: the same numbers as XLM-RoBERTa, whichever way attention is computed, and back from disk."""

import tempfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaModel

from kdnas_hf.students import (
    KDNASConfig,
    KDNASForMaskedLM,
    KDNASForQuestionAnswering,
    KDNASForSequenceClassification,
    KDNASForTokenClassification,
    KDNASModel,
)

PAD = 1
SHAPE = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
}
HETEROGENEOUS = {
    **SHAPE,
    "num_attention_heads": [2, 4, 6],
    "intermediate_size": [16, 40, 24],
    "hidden_act": ["gelu", "relu", "silu"],
}


def lively(model):
    """Large random weights, biases and norms included: tiny initial ones hide differences."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def xlm_roberta(model_class, **kwargs):
    config = XLMRobertaConfig(**SHAPE, type_vocab_size=1, pad_token_id=PAD, layer_norm_eps=1e-5)
    return lively(model_class(config, **kwargs))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, 50, (4, 11), generator=generator)
    input_ids[1, 7:] = PAD
    input_ids[2, :3] = PAD  # on the left
    input_ids[3, 1:] = PAD
    return {"input_ids": input_ids, "attention_mask": (input_ids != PAD).long()}


def set_attention(model, implementation):
    model.set_attn_implementation(implementation)
    # transformers refuses with no more than a warning, and sdpa would be compared with itself
    assert model.config._attn_implementation == implementation


def states(model, batch, **kwargs):
    with torch.no_grad():
        return model(**batch, **kwargs).last_hidden_state


def assert_same_at_tokens(actual, expected, batch, tolerance=1e-5):
    tokens = batch["attention_mask"].bool()
    torch.testing.assert_close(actual[tokens], expected[tokens], rtol=0, atol=tolerance)


# ---- XLM-RoBERTa ----


@pytest.mark.parametrize("direction", ["from XLM-RoBERTa", "to XLM-RoBERTa"])
def test_state_dict_fits_xlm_roberta_and_gives_its_numbers(batch, direction):
    theirs = xlm_roberta(XLMRobertaModel, add_pooling_layer=False)
    ours = lively(KDNASModel(KDNASConfig(**SHAPE)))
    if direction == "from XLM-RoBERTa":
        ours.load_state_dict(theirs.state_dict())
    else:
        theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        expected = theirs(**batch, output_hidden_states=True)
        actual = ours(**batch, output_hidden_states=True)
    assert len(actual.hidden_states) == len(expected.hidden_states) == 4
    for ours_layer, theirs_layer in zip(actual.hidden_states, expected.hidden_states, strict=True):
        assert_same_at_tokens(ours_layer, theirs_layer, batch)


def test_position_ids_are_those_of_xlm_roberta_for_embeddings_too(batch):
    theirs = xlm_roberta(XLMRobertaModel, add_pooling_layer=False)
    ours = KDNASModel(KDNASConfig(**SHAPE)).eval()
    ours.load_state_dict(theirs.state_dict())
    embeds = torch.randn(2, 7, 24)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(inputs_embeds=embeds).last_hidden_state, theirs(inputs_embeds=embeds).last_hidden_state
        )
    assert ours.embeddings.create_position_ids(torch.tensor([[PAD, 5, 6, PAD, 7]])).tolist() == [[1, 2, 3, 1, 4]]


def test_masked_lm_head_gives_the_numbers_of_xlm_roberta(batch):
    theirs = xlm_roberta(XLMRobertaForMaskedLM)
    ours = KDNASForMaskedLM(KDNASConfig(**SHAPE)).eval()
    renamed = {name.replace("roberta.", "kdnas."): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(renamed)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        expected, actual = theirs(**batch, labels=labels), ours(**batch, labels=labels)
    assert_same_at_tokens(actual.logits, expected.logits, batch, tolerance=1e-4)
    torch.testing.assert_close(actual.loss, expected.loss)


# ---- attention ----


def test_sdpa_and_eager_attention_give_the_same_numbers(batch):
    model = lively(KDNASModel(KDNASConfig(**HETEROGENEOUS)))
    assert model.config._attn_implementation == "sdpa"
    with_sdpa = states(model, batch)
    set_attention(model, "eager")
    with_eager = states(model, batch)
    assert_same_at_tokens(with_eager, with_sdpa, batch)
    assert not torch.equal(with_eager, with_sdpa)  # rounding and padding tell them apart


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_changes_nothing_for_tokens(batch, implementation):
    model = lively(KDNASModel(KDNASConfig(**HETEROGENEOUS)))
    set_attention(model, implementation)
    padded = states(model, batch)
    alone = states(model, {"input_ids": batch["input_ids"][1:2, :7]})
    torch.testing.assert_close(padded[1:2, :7], alone, rtol=0, atol=1e-5)
    assert not torch.allclose(states(model, {"input_ids": batch["input_ids"]})[1, :7], alone[0], atol=1e-3)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_mask_of_ones_is_no_mask_and_one_of_four_dimensions_is_used_as_it_is(batch, implementation):
    model = lively(KDNASModel(KDNASConfig(**SHAPE)))
    set_attention(model, implementation)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    without = states(model, {"input_ids": ids})
    assert torch.equal(states(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}), without)
    four = mask[:, None, None, :].bool().expand(-1, 1, 11, -1)
    assert_same_at_tokens(states(model, {"input_ids": ids, "attention_mask": four}), states(model, batch), batch)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_probabilities_are_given_whatever_computes_attention(batch, implementation):
    model = lively(KDNASModel(KDNASConfig(**HETEROGENEOUS)))
    set_attention(model, implementation)
    with torch.no_grad():
        outputs = model(**batch, output_attentions=True)
    assert [tuple(a.shape) for a in outputs.attentions] == [(4, heads, 11, 11) for heads in (2, 4, 6)]
    for attentions in outputs.attentions:
        torch.testing.assert_close(attentions.sum(-1), torch.ones(attentions.shape[:-1]))
        assert attentions[1, :, :, 7:].max() == 0
    assert_same_at_tokens(outputs.last_hidden_state, states(model, batch), batch)


# ---- outputs ----


def test_hidden_states_run_from_embeddings_to_the_last_layer(batch):
    model = lively(KDNASModel(KDNASConfig(**HETEROGENEOUS)))
    with torch.no_grad():
        outputs = model(**batch, output_hidden_states=True)
        assert len(outputs.hidden_states) == 4
        assert torch.equal(outputs.hidden_states[0], model.embeddings(batch["input_ids"]))
        assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
        assert not torch.equal(outputs.hidden_states[1], outputs.hidden_states[2])
        as_tuple = model(**batch, output_hidden_states=True, return_dict=False)
    assert torch.equal(as_tuple[0], outputs.last_hidden_state)
    assert len(as_tuple[1]) == 4
    assert model(**batch).hidden_states is None


def test_exactly_one_kind_of_input_is_taken(batch):
    model = KDNASModel(KDNASConfig(**SHAPE))
    for inputs in ({}, {"input_ids": batch["input_ids"], "inputs_embeds": torch.zeros(4, 11, 24)}):
        with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
            model(**inputs)


def test_token_types_are_added():
    model = lively(KDNASModel(KDNASConfig(**SHAPE | {"type_vocab_size": 2})))
    ids = torch.full((1, 5), 7)
    default = states(model, {"input_ids": ids})
    torch.testing.assert_close(states(model, {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}), default)
    assert not torch.allclose(states(model, {"input_ids": ids, "token_type_ids": torch.ones_like(ids)}), default)


def test_factorised_embeddings_are_mapped_to_the_hidden_size(batch):
    small = lively(KDNASModel(KDNASConfig(**SHAPE, embedding_size=8)))
    assert small.embeddings.word_embeddings.weight.shape == (50, 8)
    folded = KDNASModel(KDNASConfig(**SHAPE)).eval()
    weights = small.state_dict()
    projection = weights.pop("embeddings.projection.weight")
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"] @ projection.T
    folded.load_state_dict(weights)
    torch.testing.assert_close(states(folded, batch), states(small, batch), rtol=0, atol=1e-5)


def test_there_are_no_buffers():
    assert not list(KDNASForMaskedLM(KDNASConfig(**SHAPE)).buffers())


# ---- training ----


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(batch, use_reentrant):
    model = lively(KDNASModel(KDNASConfig(**HETEROGENEOUS))).train()

    def gradients():
        model.zero_grad()
        outputs = model(**batch, output_hidden_states=True)
        sum(state.square().mean() for state in outputs.hidden_states).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = gradients()
    # transformers 4 knows it by another name
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})
    assert all(layer.gradient_checkpointing for layer in model.encoder.layer)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, expected[name])


def test_dropout_is_off_unless_asked_for(batch):
    model = lively(KDNASModel(KDNASConfig(**SHAPE)))
    in_eval = states(model, batch)
    assert torch.equal(states(model.train(), batch), in_eval)
    with_dropout = lively(KDNASModel(KDNASConfig(**SHAPE, attention_probs_dropout_prob=0.5))).train()
    assert not torch.equal(states(with_dropout, batch), states(with_dropout, batch))


HEADS = {
    KDNASForMaskedLM: [({"labels": torch.randint(3, 50, (4, 11))}, {}, None)],
    KDNASForTokenClassification: [({"labels": torch.randint(0, 3, (4, 11))}, {"num_labels": 3}, None)],
    KDNASForSequenceClassification: [
        ({"labels": torch.tensor([0, 2, 1, 1])}, {"num_labels": 3}, "single_label_classification"),
        ({"labels": torch.randn(4)}, {"num_labels": 1}, "regression"),
        ({"labels": torch.randn(4, 2)}, {"num_labels": 2, "problem_type": "regression"}, "regression"),
        ({"labels": torch.eye(4)[:, :3]}, {"num_labels": 3}, "multi_label_classification"),
    ],
    KDNASForQuestionAnswering: [
        ({"start_positions": torch.tensor([0, 1, 3, 99]), "end_positions": torch.tensor([2, 5, 3, 99])}, {}, None)
    ],
}
CASES = [(model_class, *case) for model_class, cases in HEADS.items() for case in cases]


@pytest.mark.parametrize(("model_class", "labels", "fields", "problem_type"), CASES)
def test_heads_learn(batch, model_class, labels, fields, problem_type):
    model = lively(model_class(KDNASConfig(**HETEROGENEOUS, **fields)))
    outputs = model(**batch, **labels)
    assert outputs.loss.ndim == 0
    outputs.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.config.problem_type == problem_type
    before = outputs.loss.item()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
        assert model(**batch, **labels).loss < before
        assert model(**batch).loss is None
        assert torch.equal(model(**batch, return_dict=False)[0], model(**batch)[0])


def test_losses_have_the_values_of_their_definitions(batch):
    model = lively(KDNASForTokenClassification(KDNASConfig(**SHAPE, num_labels=3)))
    labels = torch.full((4, 11), -100)
    labels[0, 2], labels[1, 4] = 1, 2
    with torch.no_grad():
        outputs = model(**batch, labels=labels)
    log_probabilities = outputs.logits.log_softmax(-1)
    expected = -(log_probabilities[0, 2, 1] + log_probabilities[1, 4, 2]) / 2
    torch.testing.assert_close(outputs.loss, expected)

    answering = lively(KDNASForQuestionAnswering(KDNASConfig(**SHAPE)))
    with torch.no_grad():
        outputs = answering(
            **batch, start_positions=torch.tensor([0, 1, 99, 99]), end_positions=torch.tensor([2, 3, 99, 99])
        )
    start, end = outputs.start_logits.log_softmax(-1), outputs.end_logits.log_softmax(-1)
    assert start.shape == (4, 11)
    torch.testing.assert_close(outputs.loss, -(start[0, 0] + start[1, 1] + end[0, 2] + end[1, 3]) / 4)


def on_the_left(batch):
    """The same texts, with their padding before them."""
    shifts = (1 - batch["attention_mask"]).sum(1).tolist()
    return {
        name: torch.stack([row.roll(shift) for row, shift in zip(rows, shifts, strict=True)])
        for name, rows in batch.items()
    }


def on_the_right(batch):
    rows = [ids[mask.bool()] for ids, mask in zip(*batch.values(), strict=True)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


@pytest.mark.parametrize("model_class", [KDNASForSequenceClassification, KDNASForTokenClassification])
def test_logits_of_a_text_do_not_depend_on_its_neighbours_or_the_side_of_the_padding(batch, model_class):
    model = lively(model_class(KDNASConfig(**HETEROGENEOUS, num_labels=3)))
    right = on_the_right(batch)
    left = on_the_left(right)
    assert not left["attention_mask"][1:, 0].any()
    with torch.no_grad():
        for row, text in enumerate(right["input_ids"]):
            alone = model(text[text != PAD][None]).logits[0]
            for padded in (left, right):
                logits = model(**padded).logits[row]
                if model_class is KDNASForTokenClassification:
                    logits = logits[padded["attention_mask"][row].bool()]
                torch.testing.assert_close(logits, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_class", [KDNASForSequenceClassification, KDNASForTokenClassification])
def test_logits_are_made_of_the_last_hidden_states(batch, model_class):
    model = lively(model_class(KDNASConfig(**SHAPE, num_labels=3, classifier_dropout=0.5)))
    with torch.no_grad():
        outputs = model(**batch, output_hidden_states=True)
        assert torch.equal(model.classify(outputs.hidden_states[-1], batch["attention_mask"]), outputs.logits)
        model.train()
        assert not torch.equal(model.classify(outputs.hidden_states[-1], batch["attention_mask"]), outputs.logits)


def test_the_token_that_is_classified():
    model = lively(KDNASForSequenceClassification(KDNASConfig(**SHAPE, num_labels=3)))
    states = torch.randn(4, 5, 24, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 1, 0]])
    with torch.no_grad():
        expected = model.classify(states[range(4), [0, 2, 0, 1]][:, None])
        for given in (mask, mask.bool(), mask.float()):
            torch.testing.assert_close(model.classify(states, given), expected)
        first = model.classify(states[:, :1])
        torch.testing.assert_close(model.classify(states), first)
        torch.testing.assert_close(model.classify(states, torch.zeros(4, 1, 5, 5)), first)


def test_losses_are_not_divided_again_by_the_trainer():
    assert all(model_class.accepts_loss_kwargs is False for model_class in HEADS)


# ---- weights on disk ----


def test_masked_lm_head_is_tied(tmp_path):
    model = lively(KDNASForMaskedLM(KDNASConfig(**SHAPE)))
    assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
    assert model.lm_head.decoder.bias is model.lm_head.bias
    model.save_pretrained(tmp_path)
    loaded = KDNASForMaskedLM.from_pretrained(tmp_path)
    assert loaded.lm_head.decoder.weight is loaded.get_input_embeddings().weight
    assert loaded.lm_head.decoder.bias is loaded.lm_head.bias
    assert torch.equal(loaded.lm_head.bias, model.lm_head.bias)
    untied = KDNASForMaskedLM(KDNASConfig(**SHAPE, tie_word_embeddings=False))
    assert untied.lm_head.decoder.weight is not untied.get_input_embeddings().weight


@st.composite
def configurations(draw):
    layers = draw(st.integers(1, 3))

    def one_or_one_per_layer(choices):
        return draw(choices | st.lists(choices, min_size=layers, max_size=layers))

    return KDNASConfig(
        vocab_size=20,
        hidden_size=12,
        num_hidden_layers=layers,
        num_attention_heads=one_or_one_per_layer(st.sampled_from([1, 2, 3, 4, 6, 12])),
        intermediate_size=one_or_one_per_layer(st.integers(1, 24)),
        hidden_act=one_or_one_per_layer(st.sampled_from(["gelu", "relu", "silu", "tanh"])),
        embedding_size=draw(st.none() | st.integers(1, 20)),
        max_position_embeddings=16,
        pad_token_id=draw(st.sampled_from([0, 1, 3])),
        type_vocab_size=draw(st.integers(1, 2)),
        tie_word_embeddings=draw(st.booleans()),
        num_labels=draw(st.integers(1, 4)),
    )


@given(configurations(), st.sampled_from([KDNASModel, *HEADS]))
@settings(max_examples=25, deadline=None)
def test_any_architecture_gives_the_same_outputs_after_saving_and_loading(config, model_class):
    model = lively(model_class(config))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    ids = torch.randint(4, 20, (2, 9))
    with torch.no_grad():
        # equal but for rounding: tensors of a file may lie at addresses that other CPU kernels are chosen for
        torch.testing.assert_close(loaded.eval()(ids)[0], model(ids)[0], rtol=0, atol=1e-5)


def test_a_head_is_initialised_on_a_base_checkpoint(tmp_path, batch):
    base = lively(KDNASModel(KDNASConfig(**HETEROGENEOUS)))
    base.save_pretrained(tmp_path)
    for model_class in HEADS:
        model = model_class.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(states(model.kdnas, batch), states(base, batch), rtol=0, atol=1e-5)
        for name, parameter in model.named_parameters():
            assert parameter.device.type == "cpu"
            assert parameter.isfinite().all(), name
    masked_lm = KDNASForMaskedLM.from_pretrained(tmp_path)
    assert not masked_lm.lm_head.bias.any()
    assert masked_lm.lm_head.decoder.bias is masked_lm.lm_head.bias


def test_bfloat16_weights(tmp_path, batch):
    model = lively(KDNASModel(KDNASConfig(**HETEROGENEOUS)))
    model.save_pretrained(tmp_path)
    loaded = KDNASModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    for implementation in ("sdpa", "eager"):
        set_attention(loaded, implementation)
        outputs = states(loaded, batch)
        assert outputs.dtype == torch.bfloat16
        assert_same_at_tokens(outputs.float(), states(model, batch), batch, tolerance=0.3)


@pytest.mark.parametrize("model_class", [KDNASModel, KDNASForMaskedLM, KDNASForTokenClassification])
def test_vocabulary_can_be_resized(model_class, batch, tmp_path):
    model = lively(model_class(KDNASConfig(**SHAPE)))
    with torch.no_grad():
        before = model(**batch)[0]
    model.resize_token_embeddings(57)
    assert model.config.vocab_size == 57
    with torch.no_grad():
        after = model(**batch)[0]
        torch.testing.assert_close(after[..., : before.shape[-1]], before, rtol=0, atol=1e-5)
        new = model(torch.tensor([[5, 56]]))[0]
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(torch.tensor([[5, 56]]))[0], new, rtol=0, atol=1e-5)
    if model_class is KDNASForMaskedLM:
        assert after.shape[-1] == 57
        assert model.lm_head.decoder.bias is model.lm_head.bias


# ---- graphs ----


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_an_exported_graph_takes_any_shape_and_any_mask(batch, implementation):
    model = lively(KDNASModel(KDNASConfig(**HETEROGENEOUS)))
    set_attention(model, implementation)
    example = {"input_ids": torch.full((2, 6), 5), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(
        model, (), example, dynamic_shapes={"input_ids": axes, "attention_mask": axes}, strict=False
    )
    with torch.no_grad():
        exported = program.module()(**batch).last_hidden_state
    assert_same_at_tokens(exported, states(model, batch), batch)


def test_an_exported_classifier_reads_the_first_token_on_either_side(batch):
    model = lively(KDNASForSequenceClassification(KDNASConfig(**SHAPE, num_labels=3)))
    example = {"input_ids": torch.full((2, 6), 5), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(
        model, (), example, dynamic_shapes={"input_ids": axes, "attention_mask": axes}, strict=False
    )
    with torch.no_grad():
        torch.testing.assert_close(program.module()(**batch).logits, model(**batch).logits, rtol=0, atol=1e-5)
