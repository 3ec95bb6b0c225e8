"""Losses on predicted tokens, against the naive versions that make all logits at once."""

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdnas_hf.distillation.losses import decoder_inputs, logit_loss, masked_lm_loss, teacher_decoder_inputs
from kdnas_hf.students import InheritedWordEmbeddings, KDNASConfig, KDNASForMaskedLM, inherit_word_embeddings


class LargestTensor(TorchDispatchMode):
    """Keeps the size of the largest tensor that an operation returns, in numbers."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return result


def made(*shape, seed, dtype=torch.float64, trained=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_(trained)


def student_of(positions, size, vocabulary, seed=0, dtype=torch.float64):
    """States, weight and bias that all need gradients."""
    return [
        made(positions, size, seed=seed, dtype=dtype),
        made(vocabulary, size, seed=seed + 1, dtype=dtype),
        made(vocabulary, seed=seed + 2, dtype=dtype),
    ]


def teacher_of(positions, size, vocabulary, seed=100, dtype=torch.float64):
    return [tensor.detach() for tensor in student_of(positions, size, vocabulary, seed, dtype)]


def logits_of(states, weight, bias):
    return states @ weight.T + (0 if bias is None else bias)


def naive_logit_loss(student, teacher, temperature, num_tokens):
    log_p = (logits_of(*student) / temperature).log_softmax(-1)
    log_q = (logits_of(*teacher) / temperature).log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum() * temperature**2 / num_tokens


def naive_masked_lm_loss(student, labels, num_tokens):
    return nn.functional.cross_entropy(logits_of(*student), labels, reduction="sum") / num_tokens


def probabilities(logits, temperature):
    exponentials = [math.exp(logit / temperature) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]


@settings(deadline=None, max_examples=15)
@given(
    positions=st.integers(0, 3),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    vocabulary=st.integers(1, 7),
    chunk_size=st.integers(1, 9),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    seed=st.integers(0, 50),
)
def test_losses_are_those_of_loops(positions, sizes, vocabulary, chunk_size, temperature, seed):
    student = student_of(positions, sizes[0], vocabulary, seed)
    teacher = teacher_of(positions, sizes[1], vocabulary, seed + 100)
    labels = [(seed + position) % vocabulary for position in range(positions)]
    divergence, cross_entropy = 0.0, 0.0
    for position, label in enumerate(labels):
        student_logits = logits_of(*student)[position].tolist()
        p = probabilities(student_logits, temperature)
        q = probabilities(logits_of(*teacher)[position].tolist(), temperature)
        divergence += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)) * temperature**2 / 5
        cross_entropy -= math.log(probabilities(student_logits, 1)[label]) / 5
    loss = logit_loss(*student, *teacher, temperature, 5, chunk_size)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(divergence, rel=1e-9, abs=1e-12)
    loss = masked_lm_loss(*student, torch.tensor(labels, dtype=torch.long), 5, chunk_size)
    assert loss.item() == pytest.approx(cross_entropy, rel=1e-9, abs=1e-12)


def test_golden_values():
    states = torch.ones(1, 1)
    student = (states, torch.zeros(2, 1), None)
    teacher = (states, torch.tensor([[math.log(9)], [0.0]]), None)
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert logit_loss(*student, *teacher, 1.0, 1).item() == pytest.approx(expected)
    # at temperature 2 the odds of 9 to 1 are 3 to 1
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert logit_loss(*student, *teacher, 2.0, 1).item() == pytest.approx(expected)
    assert masked_lm_loss(*teacher, torch.tensor([1]), 1).item() == pytest.approx(-math.log(0.1))


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_logit_gradients_are_those_of_all_logits_at_once(chunk_size, temperature):
    student, teacher = student_of(4, 3, 7), teacher_of(4, 5, 7)
    expected = torch.autograd.grad(3 * naive_logit_loss(student, teacher, temperature, 6), student)
    loss = logit_loss(*student, *teacher, temperature, torch.tensor(6.0, dtype=torch.float64), chunk_size)
    torch.testing.assert_close(loss, naive_logit_loss(student, teacher, temperature, 6))
    torch.testing.assert_close(torch.autograd.grad(3 * loss, student), expected)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_masked_lm_gradients_are_those_of_all_logits_at_once(chunk_size):
    student, labels = student_of(4, 3, 7), torch.tensor([6, 0, -100, 3])
    expected = torch.autograd.grad(3 * naive_masked_lm_loss(student, labels, 6), student)
    loss = masked_lm_loss(*student, labels, 6, chunk_size)
    torch.testing.assert_close(loss, naive_masked_lm_loss(student, labels, 6))
    torch.testing.assert_close(torch.autograd.grad(3 * loss, student), expected)


def test_gradients_are_those_of_numbers():
    student, teacher = student_of(3, 2, 5), teacher_of(3, 4, 5)
    labels = torch.tensor([4, 0, 2])
    assert torch.autograd.gradcheck(lambda *s: logit_loss(*s, *teacher, 2.0, 4, 2), student)
    assert torch.autograd.gradcheck(lambda *s: masked_lm_loss(*s, labels, 4, 2), student)


@pytest.mark.parametrize("trained", ["states", "weight", "bias"])
def test_only_what_is_trained_gets_a_gradient(trained):
    student = dict(zip(("states", "weight", "bias"), student_of(4, 3, 7), strict=True))
    teacher, labels = teacher_of(4, 5, 7), torch.tensor([1, 2, 3, 4])
    for name, tensor in student.items():
        tensor.requires_grad_(name == trained)
    for loss, naive in (
        (logit_loss(*student.values(), *teacher, 2.0, 4, 3), naive_logit_loss(student.values(), teacher, 2.0, 4)),
        (masked_lm_loss(*student.values(), labels, 4, 3), naive_masked_lm_loss(student.values(), labels, 4)),
    ):
        (gradient,) = torch.autograd.grad(loss, student[trained])
        torch.testing.assert_close(gradient, torch.autograd.grad(naive, student[trained])[0])


def test_decoders_may_have_no_bias():
    (states, weight, _), (teacher_states, teacher_weight, _) = student_of(4, 3, 7), teacher_of(4, 5, 7)
    student, teacher = (states, weight, None), (teacher_states, teacher_weight, None)
    labels = torch.tensor([1, 2, 3, 4])
    for loss, naive in (
        (logit_loss(*student, *teacher, 2.0, 4, 3), naive_logit_loss(student, teacher, 2.0, 4)),
        (masked_lm_loss(*student, labels, 4, 3), naive_masked_lm_loss(student, labels, 4)),
    ):
        torch.testing.assert_close(loss, naive)
        gradients, expected = (torch.autograd.grad(value, [states, weight]) for value in (loss, naive))
        torch.testing.assert_close(gradients, expected)


def test_the_teacher_gets_no_gradient():
    student, teacher = student_of(4, 3, 7), [tensor.requires_grad_() for tensor in teacher_of(4, 3, 7)]
    logit_loss(*student, *teacher, 1.0, 4, 3).backward()
    assert all(tensor.grad is None for tensor in teacher)
    assert all(tensor.grad.abs().max() > 0 for tensor in student)


def test_parts_of_a_batch_add_up():
    (states, *decoder), (teacher_states, *teacher_decoder) = student_of(5, 3, 7), teacher_of(5, 4, 7)
    labels = torch.tensor([0, 1, 2, 3, 6])
    parts = [slice(0, 2), slice(2, 2), slice(2, 5)]  # one of them masks no token
    torch.testing.assert_close(
        sum(logit_loss(states[p], *decoder, teacher_states[p], *teacher_decoder, 2.0, 5, 3) for p in parts),
        logit_loss(states, *decoder, teacher_states, *teacher_decoder, 2.0, 5, 3),
    )
    torch.testing.assert_close(
        sum(masked_lm_loss(states[p], *decoder, labels[p], torch.tensor(5.0), 3) for p in parts),
        masked_lm_loss(states, *decoder, labels, 5, 3),
    )


def test_without_masked_tokens_losses_and_gradients_are_zero():
    student, teacher = student_of(0, 3, 7), teacher_of(0, 4, 7)
    for loss in (
        logit_loss(*student, *teacher, 2.0, 5, 3),
        masked_lm_loss(*student, torch.zeros(0, dtype=torch.long), 5, 3),
        masked_lm_loss(*student_of(2, 3, 7), torch.tensor([-100, -100]), 5, 3),
    ):
        assert loss.item() == 0
        loss.backward()
    assert all((tensor.grad == 0).all() for tensor in student)


def test_a_student_that_predicts_as_its_teacher_has_nothing_to_learn():
    teacher = teacher_of(4, 3, 50, dtype=torch.float32)
    student = [tensor.clone().requires_grad_() for tensor in teacher]
    loss = logit_loss(*student, *teacher, 2.0, 4, 8)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert all(tensor.grad.abs().max() < 1e-6 for tensor in student)


def test_adding_a_constant_to_logits_changes_nothing():
    student, teacher = student_of(4, 3, 50, dtype=torch.float32), teacher_of(4, 3, 50, dtype=torch.float32)
    loss = logit_loss(*student, *teacher, 1.0, 4, 8)
    moved = logit_loss(student[0], student[1], student[2] + 50, *teacher, 1.0, 4, 8)
    torch.testing.assert_close(moved, loss, rtol=1e-4, atol=0)


def test_large_logits_stay_finite():
    student, teacher = student_of(4, 3, 50, dtype=torch.float32), teacher_of(4, 3, 50, dtype=torch.float32)
    states = (1e4 * student[0].detach()).requires_grad_()
    labels = torch.tensor([0, 1, 2, 49])
    for loss in (
        logit_loss(states, *student[1:], 1e4 * teacher[0], *teacher[1:], 1.0, 4, 8),
        masked_lm_loss(states, *student[1:], labels, 4, 8),
    ):
        (gradient,) = torch.autograd.grad(loss, states)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def largest_tensor(loss_of, *trained):
    with LargestTensor() as largest:
        torch.autograd.grad(loss_of(), trained)
    return largest.numbers


def test_all_logits_at_once_never_exist():
    positions, size, vocabulary, chunk_size = 64, 8, 1000, 100
    (states, weight, bias), teacher = student_of(positions, size, vocabulary), teacher_of(positions, size, vocabulary)
    labels = torch.arange(positions)
    frozen = weight.detach()

    def logits(weight):
        return lambda: logit_loss(states, weight, bias, *teacher, 2.0, positions, chunk_size)

    def tokens(weight):
        return lambda: masked_lm_loss(states, weight, bias, labels, positions, chunk_size)

    for loss_of in (logits, tokens):
        assert largest_tensor(loss_of(frozen), states, bias) == positions * chunk_size
        # a table that is trained has a gradient of its own size
        assert largest_tensor(loss_of(weight), states, weight, bias) == vocabulary * size

    def naive():
        return naive_logit_loss((states, frozen, bias), teacher, 2.0, positions)

    assert largest_tensor(naive, states, bias) == positions * vocabulary  # what is measured can be too large


def test_bf16_autocast_is_close_to_float32_and_its_backward_may_run_outside():
    student, teacher = (of(16, 32, 300, dtype=torch.float32) for of in (student_of, teacher_of))
    # logits of a size that a trained model has
    student = [(tensor * 0.3).detach().requires_grad_() for tensor in student]
    teacher = [tensor * 0.3 for tensor in teacher]
    labels = torch.arange(16)
    for loss_of in (
        lambda: logit_loss(*student, *teacher, 2.0, 16, 64),
        lambda: masked_lm_loss(*student, labels, 16, 64),
    ):
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


def test_autocast_leaves_the_teacher_in_the_dtype_of_its_states():
    student, teacher = student_of(4, 8, 50, dtype=torch.float32), teacher_of(4, 8, 50, dtype=torch.float32)
    student = [tensor.detach() for tensor in student]
    zeros = [torch.zeros_like(tensor) for tensor in student]  # logits that bf16 does not round
    exact = logit_loss(*zeros, *teacher, 1.0, 4, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert logit_loss(*zeros, *teacher, 1.0, 4, 16).item() == exact.item()
    low = logit_loss(*zeros, *[tensor.bfloat16() for tensor in teacher], 1.0, 4, 16)
    assert low.dtype == torch.float32
    assert low.item() != exact.item()
    torch.testing.assert_close(low, exact, rtol=0.02, atol=0)


def test_a_model_in_bf16_gets_gradients_in_bf16():
    student = [t.detach().bfloat16().requires_grad_() for t in student_of(4, 8, 50, dtype=torch.float32)]
    loss = masked_lm_loss(*student, torch.arange(4), 4, 16)
    assert loss.dtype == torch.float32
    exact = naive_masked_lm_loss([tensor.float() for tensor in student], torch.arange(4), 4)
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)
    assert [g.dtype for g in torch.autograd.grad(loss, student)] == [torch.bfloat16] * 3


def test_a_label_outside_of_the_vocabulary_does_not_pass_unseen():
    assert masked_lm_loss(*student_of(2, 3, 7), torch.tensor([1, 7]), 2, 3).item() == math.inf


def test_impossible_settings_are_refused():
    student, teacher = student_of(2, 3, 7), teacher_of(2, 3, 7)
    with pytest.raises(ValueError, match=r"temperature=0\.0 must be greater than 0"):
        logit_loss(*student, *teacher, 0.0, 2)
    with pytest.raises(ValueError, match="chunk_size=0 must be at least 1"):
        logit_loss(*student, *teacher, 1.0, 2, 0)
    with pytest.raises(ValueError, match="chunk_size=-1 must be at least 1"):
        masked_lm_loss(*student, torch.tensor([0, 1]), 2, -1)
    with pytest.raises(ValueError, match="the student predicts vocab_size=7 tokens, its teacher 8"):
        logit_loss(*student, *teacher_of(2, 3, 8), 1.0, 2)


# ---- heads ----


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
    torch.testing.assert_close(logits_of(*inputs), model.lm_head(hidden_states))
    assert inputs.weight.shape == (60, 24 if inherit else model.config.word_embedding_size)
    assert inputs.weight.requires_grad == (not inherit)


def test_a_student_may_have_a_decoder_of_its_own():
    model = make_student(tie_word_embeddings=False)
    hidden_states = torch.randn(5, 16)
    inputs = decoder_inputs(model, hidden_states)
    torch.testing.assert_close(logits_of(*inputs), model.lm_head(hidden_states))
    assert inputs.weight is model.lm_head.decoder.weight


@pytest.mark.parametrize("inherit", [False, True])
def test_a_whole_student_gets_the_gradients_of_its_own_loss(inherit):
    model = make_student(inherit)
    ids = torch.randint(4, 60, (2, 9))
    labels = ids.masked_fill(torch.rand(2, 9) < 0.6, -100)
    model(input_ids=ids, labels=labels).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    predicted = labels != -100
    states = model.kdnas(input_ids=ids).last_hidden_state[predicted]
    masked_lm_loss(*decoder_inputs(model, states), labels[predicted], int(predicted.sum()), 7).backward()
    actual = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert ("kdnas.embeddings.word_embeddings.projection" in actual) == inherit
    torch.testing.assert_close(actual, expected)


def test_the_product_of_table_and_projection_is_never_made():
    model = make_student(inherit=True)
    hidden_states = torch.randn(5, 16, requires_grad=True)
    with LargestTensor() as largest:
        masked_lm_loss(*decoder_inputs(model, hidden_states), torch.arange(5), 5, chunk_size=10).backward()
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
    torch.testing.assert_close(logits_of(*inputs), logits.flatten(0, 1)[chosen])
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
