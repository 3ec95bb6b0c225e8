"""Logits over the vocabulary: made for a few positions at a time, from what enters the decoder of any model."""

import pytest
import torch
import transformers
from losses.decoders import (
    logits_of,
    make_decoder,
    make_teacher_decoder,
    naive_logit_loss,
    naive_masked_lm_loss,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdnas_hf.distillation import token_logits
from kdnas_hf.distillation.losses import logit_loss, masked_lm_loss
from kdnas_hf.distillation.token_logits import decoder_inputs
from kdnas_hf.students import InheritedWordEmbeddings, KDNASConfig, KDNASForMaskedLM, inherit_word_embeddings
from kdnas_hf.utils.decoders import DecoderInputs, teacher_decoder_inputs


class LargestTensor(TorchDispatchMode):
    """Keeps the size of the largest tensor that an operation makes, in numbers; views are not made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given, made = (
            {leaf.untyped_storage().data_ptr(): leaf.numel() for leaf in tree_leaves(tree) if torch.is_tensor(leaf)}
            for tree in ((args, kwargs), result)
        )
        self.numbers = max([self.numbers, *(numbers for place, numbers in made.items() if place not in given)])
        return result


@pytest.fixture
def chunks(monkeypatch):
    """Sets how many logits are made at a time."""
    return lambda numbers: monkeypatch.setattr(token_logits, "_LOGITS_AT_A_TIME", numbers)


TEACHER = make_teacher_decoder(6, 5, 7)
LABELS = torch.tensor([6, 0, -100, 3, 1, 1])
LOSSES = {
    "logits": (
        lambda student: logit_loss(student, TEACHER, 2.5, torch.tensor(8.0, dtype=torch.float64)),
        lambda student: naive_logit_loss(student, TEACHER, 2.5, 8),
    ),
    "masked_lm": (
        lambda student: masked_lm_loss(student, LABELS, 8),
        lambda student: naive_masked_lm_loss(student, LABELS, 8),
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("positions_at_a_time", [1, 4, 6, 100])
def test_values_and_gradients_are_those_of_all_logits_at_once(loss, positions_at_a_time, chunks):
    chunks(7 * positions_at_a_time + 3)
    loss_of, naive = LOSSES[loss]
    student = make_decoder(6, 3, 7)
    torch.testing.assert_close(loss_of(student), naive(student))
    gradients, expected = (torch.autograd.grad(3 * of(student), student) for of in (loss_of, naive))
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_decoder_may_have_no_bias_and_more_tokens_than_a_chunk_has_logits(loss, chunks):
    chunks(3)
    loss_of, naive = LOSSES[loss]
    student = make_decoder(6, 3, 7)._replace(bias=None)
    torch.testing.assert_close(
        torch.autograd.grad(loss_of(student), student[:2]), torch.autograd.grad(naive(student), student[:2])
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("trained", ["states", "weight", "bias"])
def test_only_what_is_trained_gets_a_gradient(loss, trained, chunks):
    chunks(14)
    loss_of, naive = LOSSES[loss]
    student = DecoderInputs(*(tensor.detach() for tensor in make_decoder(6, 3, 7)))
    parameter = getattr(student, trained).requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(loss_of(student), parameter), torch.autograd.grad(naive(student), parameter)
    )


def test_the_teacher_gets_no_gradient():
    student, teacher = make_decoder(4, 3, 7), make_teacher_decoder(4, 3, 7)
    logit_loss(student, teacher, 1.0, 4).backward()
    assert not any(tensor.requires_grad for tensor in teacher)
    assert all(tensor.grad.abs().max() > 0 for tensor in student)


def test_parts_of_a_batch_add_up(chunks):
    chunks(14)
    student, teacher, labels = make_decoder(5, 3, 7), make_teacher_decoder(5, 4, 7), torch.tensor([0, 1, 2, 3, 6])
    parts = [slice(0, 2), slice(2, 2), slice(2, 5)]  # one of them masks no token

    def part(decoder, rows):
        return decoder._replace(states=decoder.states[rows])

    torch.testing.assert_close(
        sum(logit_loss(part(student, rows), part(teacher, rows), 2.0, 5) for rows in parts),
        logit_loss(student, teacher, 2.0, 5),
    )
    torch.testing.assert_close(
        sum(masked_lm_loss(part(student, rows), labels[rows], torch.tensor(5.0)) for rows in parts),
        masked_lm_loss(student, labels, 5),
    )


def test_where_no_token_is_masked_losses_and_gradients_are_zero():
    none = torch.zeros(0, dtype=torch.long)
    for loss_of in (
        lambda student: logit_loss(student, make_teacher_decoder(0, 4, 7), 2.0, 5),
        lambda student: masked_lm_loss(student, none, 5),
    ):
        states = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
        loss = loss_of(make_decoder(0, 3, 7)._replace(states=states.flatten(0, 1).index_select(0, none)))
        assert loss.item() == 0
        loss.backward()
        assert (states.grad == 0).all()


def test_large_logits_stay_finite():
    student = make_decoder(4, 3, 50, dtype=torch.float32)
    teacher = make_teacher_decoder(4, 3, 50, dtype=torch.float32)
    states = (1e4 * student.states.detach()).requires_grad_()
    student = student._replace(states=states)
    for loss in (
        logit_loss(student, teacher._replace(states=1e4 * teacher.states), 1.0, 4),
        masked_lm_loss(student, torch.tensor([0, 1, 2, 49]), 4),
    ):
        (gradient,) = torch.autograd.grad(loss, states)
        assert loss.isfinite()
        assert gradient.isfinite().all()


# ---- memory ----


def test_no_more_logits_exist_than_are_made_at_a_time(chunks):
    positions, size, vocabulary = 64, 8, 1000
    chunks(4 * vocabulary)
    student, teacher = make_decoder(positions, size, vocabulary), make_teacher_decoder(positions, size, vocabulary)
    student = student._replace(weight=student.weight.detach())  # a table that is trained has a gradient of its size
    labels = torch.arange(positions)

    def numbers(loss_of):
        """Of the largest tensor that exists for a moment, and of all that wait for the backward pass."""
        kept = {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with LargestTensor() as largest:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = loss_of()
            torch.autograd.grad(loss, (student.states, student.bias))
        return largest.numbers, sum(kept.values())

    for loss_of in (
        lambda: logit_loss(student, teacher, 2.0, positions),
        lambda: masked_lm_loss(student, labels, positions),
    ):
        largest, kept = numbers(loss_of)
        assert largest == 4 * vocabulary
        assert kept < 0.2 * positions * vocabulary
    largest, kept = numbers(lambda: naive_logit_loss(student, teacher, 2.0, positions))
    assert largest == positions * vocabulary  # what is measured can be too large
    assert kept >= positions * vocabulary


# ---- precision ----


def test_bf16_autocast_is_close_to_float32_and_its_backward_may_run_outside(chunks):
    chunks(5 * 300)
    student = make_decoder(16, 32, 300, dtype=torch.float32)
    # logits of a size that a trained model has
    student = DecoderInputs(*((tensor * 0.3).detach().requires_grad_() for tensor in student))
    teacher = DecoderInputs(*(t * 0.3 for t in make_teacher_decoder(16, 32, 300, dtype=torch.float32)))
    labels = torch.arange(16)
    for loss_of in (lambda: logit_loss(student, teacher, 2.0, 16), lambda: masked_lm_loss(student, labels, 16)):
        exact = loss_of()
        exact_gradients = torch.autograd.grad(exact, student)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = loss_of()
        assert low.dtype == torch.float32
        assert low.item() != exact.item()
        torch.testing.assert_close(low, exact, rtol=0.02, atol=0)
        for gradient, expected in zip(torch.autograd.grad(low, student), exact_gradients, strict=True):
            assert gradient.dtype == torch.float32
            assert (gradient - expected).norm() < 0.02 * expected.norm()


# ---- students and teachers ----


def make_student(inherit=False, **fields):
    config = KDNASConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=20,
        **fields,
    )
    torch.manual_seed(0)
    model = KDNASForMaskedLM(config).eval()
    if inherit:
        table = nn.Parameter(torch.randn(60, 24), requires_grad=False)
        projection = torch.randn(24, config.word_embedding_size) / 5
        inherit_word_embeddings(model, InheritedWordEmbeddings(table, projection))
    nn.init.normal_(model.lm_head.decoder.bias)
    return model


@pytest.mark.parametrize("inherit", [False, True])
@pytest.mark.parametrize("embedding_size", [None, 12])
def test_a_students_decoder_inputs_make_its_logits(inherit, embedding_size):
    model = make_student(inherit, embedding_size=embedding_size)
    hidden_states = torch.randn(5, 16)
    inputs = decoder_inputs(model, hidden_states)
    torch.testing.assert_close(logits_of(inputs), model.lm_head(hidden_states))
    assert inputs.weight.shape == (60, 24 if inherit else model.config.word_embedding_size)
    assert inputs.weight.requires_grad == (not inherit)


def test_a_student_may_have_a_decoder_of_its_own():
    model = make_student(tie_word_embeddings=False)
    hidden_states = torch.randn(5, 16)
    inputs = decoder_inputs(model, hidden_states)
    torch.testing.assert_close(logits_of(inputs), model.lm_head(hidden_states))
    assert inputs.weight is model.lm_head.decoder.weight


@pytest.mark.parametrize("inherit", [False, True])
def test_a_whole_student_gets_the_gradients_of_its_own_loss(inherit, chunks):
    chunks(2 * 60)
    model = make_student(inherit)
    ids = torch.randint(4, 60, (2, 9))
    labels = ids.masked_fill(torch.rand(2, 9) < 0.6, -100)
    model(input_ids=ids, labels=labels).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    predicted = labels != -100
    states = model.kdnas(input_ids=ids).last_hidden_state[predicted]
    masked_lm_loss(decoder_inputs(model, states), labels[predicted], int(predicted.sum())).backward()
    actual = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert ("kdnas.embeddings.word_embeddings.projection" in actual) == inherit
    torch.testing.assert_close(actual, expected)


def test_the_product_of_table_and_projection_is_never_made(chunks):
    chunks(60)
    model = make_student(inherit=True)
    hidden_states = torch.randn(5, 16, requires_grad=True)
    with LargestTensor() as largest:
        masked_lm_loss(decoder_inputs(model, hidden_states), torch.arange(5), 5).backward()
    assert largest.numbers < 60 * 16


SHAPE = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 20,
}
MODERN_SHAPE = SHAPE | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
DISTIL_SHAPE = {"vocab_size": 61, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
HEADS = {
    "Bert": SHAPE,
    "XLMRoberta": SHAPE,
    "DistilBert": DISTIL_SHAPE,
    "ModernBert": MODERN_SHAPE,
    "Electra": SHAPE | {"embedding_size": 8},
    "Albert": SHAPE | {"embedding_size": 8},
    "MPNet": SHAPE,
    "DebertaV2": SHAPE,
    "Esm": SHAPE | {"pad_token_id": 1, "mask_token_id": 3},
}


def make_masked_lm(kind, fields):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**fields)
    model = getattr(transformers, f"{kind}ForMaskedLM")(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # biases start as zero, and would hide that one is forgotten
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("kind", HEADS)
def test_any_teachers_decoder_inputs_make_its_logits(kind):
    model = make_masked_lm(kind, HEADS[kind])
    ids = torch.randint(4, 61, (2, 7))
    mask = torch.ones_like(ids)
    logits = model(input_ids=ids, attention_mask=mask).logits
    states = model.base_model(input_ids=ids, attention_mask=mask)[0]
    chosen = torch.tensor([0, 3, 12])
    inputs = teacher_decoder_inputs(model, states.flatten(0, 1)[chosen])
    torch.testing.assert_close(logits_of(inputs), logits.flatten(0, 1)[chosen])
    assert inputs.states.shape == (3, inputs.weight.shape[1])
    # the model is as it was
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, logits)
    assert "forward" not in model.base_model.__dict__
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_a_teachers_logits_are_not_made():
    model = make_masked_lm("XLMRoberta", SHAPE | {"vocab_size": 500})
    with LargestTensor() as largest:
        teacher_decoder_inputs(model, torch.randn(40, 16))
    assert largest.numbers < 40 * 500


def test_no_masked_position_is_no_trouble():
    assert teacher_decoder_inputs(make_masked_lm("Bert", SHAPE), torch.zeros(0, 16)).states.shape == (0, 16)


def test_a_teacher_in_bf16_stays_in_bf16_under_autocast():
    model = make_masked_lm("XLMRoberta", SHAPE)
    states = torch.randn(3, 16)
    exact = teacher_decoder_inputs(model, states)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(teacher_decoder_inputs(model, states).states, exact.states, rtol=0, atol=0)
    low = teacher_decoder_inputs(model.bfloat16(), states.bfloat16())
    assert (low.states.dtype, low.weight.dtype) == (torch.bfloat16, torch.bfloat16)
    torch.testing.assert_close(low.states.float(), exact.states, rtol=0.05, atol=0.05)


def test_a_teacher_that_fails_is_left_as_it_was():
    model = make_masked_lm("Bert", SHAPE)
    with pytest.raises(RuntimeError):
        teacher_decoder_inputs(model, torch.randn(3, 17))
    assert "forward" not in model.base_model.__dict__
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_teachers_without_a_linear_decoder_are_refused():
    states = torch.randn(3, 16)
    encoder = transformers.BertModel(transformers.BertConfig(**SHAPE))
    with pytest.raises(ValueError, match="BertModel has no head that predicts tokens, .*; choose a masked language"):
        teacher_decoder_inputs(encoder, states)
    classifier = transformers.BertForSequenceClassification(transformers.BertConfig(**SHAPE))
    with pytest.raises(ValueError, match="BertForSequenceClassification has no head that predicts tokens"):
        teacher_decoder_inputs(classifier, states)
    other = make_masked_lm("Bert", SHAPE)
    other.cls.predictions.decoder = nn.Sequential(nn.Linear(16, 61), nn.Tanh())
    with pytest.raises(ValueError, match="predicts tokens by a Sequential, not by a linear map"):
        teacher_decoder_inputs(other, states)
    # its output embeddings are a map within its head; the vocabulary comes by its input embeddings. Not tied: the one
    # to the other is what transformers 4 would do
    fields = SHAPE | {"legacy": False, "tie_word_embeddings": False}
    with pytest.raises(ValueError, match="DebertaV2ForMaskedLM has output embeddings for 16 of 61 tokens"):
        teacher_decoder_inputs(make_masked_lm("DebertaV2", fields), states)
    # its decoder is concatenated with another map, and never called
    fields = SHAPE | {"embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8}
    with pytest.raises(ValueError, match="MobileBertForMaskedLM does not predict with its decoder"):
        teacher_decoder_inputs(make_masked_lm("MobileBert", fields), states)
