"""Copied layers: a student of its teacher's shape computes what the teacher does, one of another shape comes near."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from kdnas_hf.students import KDNASConfig, TeacherEmbeddings, check_copyable, copy_layers, create_student

VOCABULARY, HIDDEN, LAYERS, HEADS, NEURONS, POSITIONS = 60, 16, 4, 4, 24, 20
ALL = {number: number for number in range(1, LAYERS + 1)}
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": NEURONS,
    "type_vocab_size": 2,
}
# BERT counts positions from 0, XLM-RoBERTa from behind its padding token
TEACHERS = {
    "bert": (BertModel, BertConfig(**SHAPE, max_position_embeddings=POSITIONS, pad_token_id=0)),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig(**SHAPE, max_position_embeddings=POSITIONS + 2, pad_token_id=1)),
}


def lively(model):
    """Random parameters: initial layers hardly do anything, initial biases and norms nothing at all."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "LayerNorm.weight" in name:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
        else:
            parameter.data.normal_(std=0.3, generator=generator)
    return model.eval().requires_grad_(False)


def make_teacher(kind="bert", **changes):
    model_class, config = TEACHERS[kind]
    config = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(config, name, value)
    return lively(model_class(config, add_pooling_layer=False))


def make_student(teacher, **changes):
    config = KDNASConfig(
        **{**SHAPE, "layer_norm_eps": teacher.config.layer_norm_eps, "pad_token_id": teacher.config.pad_token_id}
        | {"max_position_embeddings": POSITIONS + 2}
        | changes
    )
    return create_student(config, TeacherEmbeddings.from_teacher(teacher)).eval().requires_grad_(False)


def states(model, **more):
    """States of the embeddings and of all layers at the tokens of two texts, one of them padded."""
    pad = model.config.pad_token_id
    ids = torch.randint(4, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    ids[1, 7:] = pad
    mask = ids.ne(pad)
    found = model(ids, attention_mask=mask.long(), output_hidden_states=True, **more).hidden_states
    return [layer[mask] for layer in found]


def error_of(student, teacher):
    """Share of the variance of the teacher's last states that the student's miss."""
    ours, theirs = states(student)[-1], states(teacher)[-1]
    return float((ours - theirs).square().sum() / (theirs - theirs.mean(0)).square().sum())


def assert_same_states(student, teacher, layers, **more):
    """Student and teacher agree in the embeddings, and in each student layer with the teacher layer given for it."""
    ours, theirs = states(student, **more), states(teacher, **more)
    for number, source in {0: 0, **layers}.items():
        torch.testing.assert_close(ours[number], theirs[source], rtol=0, atol=1e-4 * float(theirs[source].std()))


# ---- exact copies ----


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_student_of_its_teachers_shape_computes_what_the_teacher_does_in_every_layer(kind):
    teacher = make_teacher(kind)
    student = make_student(teacher)
    copy_layers(student, ALL, teacher)
    assert_same_states(student, teacher, ALL)
    types = torch.arange(12).remainder(2).expand(2, 12)
    assert_same_states(student, teacher, ALL, token_type_ids=types)


def test_a_student_that_factorises_its_embeddings_without_loss_computes_the_same():
    # the table has no variance beyond its first 10 principal directions, and no mean beyond them
    teacher = make_teacher()
    table = teacher.embeddings.word_embeddings.weight
    _, _, directions = torch.linalg.svd(table - table.mean(0))
    table.copy_((table - table.mean(0)) @ directions[:10].T @ directions[:10])
    student = make_student(teacher, embedding_size=10)
    copy_layers(student, ALL, teacher)
    assert_same_states(student, teacher, ALL)


@pytest.mark.parametrize("layers", [{1: 1, 2: 2}, {1: 1}])
def test_some_layers_may_be_copied_and_the_others_stay(layers):
    teacher = make_teacher()
    student = make_student(teacher, num_hidden_layers=2)
    before = copy.deepcopy(student.encoder.layer[1].state_dict())
    copy_layers(student, layers, teacher)
    assert_same_states(student, teacher, layers)
    after = student.encoder.layer[1].state_dict()
    assert (2 in layers) != all(torch.equal(value, before[name]) for name, value in after.items())


def test_any_layer_may_become_any_other():
    teacher = make_teacher()
    student = make_student(teacher, num_hidden_layers=3)
    copy_layers(student, {1: 4, 2: 2, 3: 2}, teacher)
    layers = student.encoder.layer
    for number, source in ((0, 3), (1, 1), (2, 1)):
        for name, parameter in layers[number].named_parameters():
            assert torch.equal(parameter, teacher.encoder.layer[source].get_parameter(name)), name
            assert parameter.data_ptr() != teacher.encoder.layer[source].get_parameter(name).data_ptr()


@pytest.mark.parametrize("kind", ["electra", "roberta with a head", "bfloat16"])
def test_teachers_of_berts_kind_are_copied_whatever_their_head_and_dtype(kind):
    teacher = {
        "electra": lambda: lively(ElectraModel(ElectraConfig(**SHAPE, embedding_size=HIDDEN, pad_token_id=0))),
        "roberta with a head": lambda: lively(RobertaForMaskedLM(RobertaConfig(**SHAPE))),
        "bfloat16": lambda: make_teacher().to(torch.bfloat16),
    }[kind]()
    student = make_student(teacher)
    copy_layers(student, ALL, teacher)
    assert student.dtype == torch.float32
    assert_same_states(student, teacher.float(), ALL)


# ---- other shapes ----


def test_more_neurons_change_nothing_and_can_learn():
    teacher = make_teacher()
    student = make_student(teacher, intermediate_size=NEURONS + 16)
    copy_layers(student, ALL, teacher)
    assert_same_states(student, teacher, ALL)
    assert (student.encoder.layer[0].intermediate.dense.weight[NEURONS:] != 0).any(dim=1).all()


def test_of_too_many_neurons_those_with_the_smallest_weights_are_left_out():
    teacher = make_teacher()
    dead = torch.randperm(NEURONS, generator=torch.Generator().manual_seed(0))
    for layer in teacher.encoder.layer:
        layer.output.dense.weight[:, dead[:5]] = 0
        layer.intermediate.dense.weight[dead[5:10]] = 0
        layer.intermediate.dense.bias[dead[5:10]] = 0
    student = make_student(teacher, intermediate_size=[NEURONS - 10, NEURONS, NEURONS - 1, NEURONS + 1])
    copy_layers(student, ALL, teacher)
    assert_same_states(student, teacher, ALL)


@pytest.mark.parametrize("heads", [1, 2, 8, 16, [1, 4, 8, 2]])
def test_other_numbers_of_heads_start_from_the_same_matrices(heads):
    teacher = make_teacher()
    student = make_student(teacher, num_attention_heads=heads)
    copy_layers(student, ALL, teacher)
    assert all(layer.isfinite().all() for layer in states(student))
    value = "encoder.layer.0.attention.self.value.weight"
    assert torch.equal(student.get_parameter(value), teacher.get_parameter(value))
    assert error_of(student, teacher) < error_of(make_student(teacher, num_attention_heads=heads), teacher)


@pytest.mark.parametrize("heads", [1, 2])
def test_merged_heads_come_closer_with_the_mean_of_their_scores(heads):
    teacher = make_teacher()
    student = make_student(teacher, num_attention_heads=heads)
    copy_layers(student, ALL, teacher)
    error = error_of(student, teacher)
    for layer, source in zip(student.encoder.layer, teacher.encoder.layer, strict=True):
        layer.attention.self.query.load_state_dict(source.attention.self.query.state_dict())
    assert error < 0.9 * error_of(student, teacher)


def test_layers_may_differ_in_everything():
    teacher = make_teacher()
    shape = {"num_attention_heads": [2, 4, 8], "intermediate_size": [8, 40, 24], "hidden_act": ["gelu", "relu", "silu"]}
    student = make_student(teacher, num_hidden_layers=3, **shape)
    copy_layers(student, {1: 1, 3: 4}, teacher)
    assert all(layer.isfinite().all() for layer in states(student))


# ---- what is promised about it ----


def test_the_teacher_and_the_students_mode_are_left_alone():
    teacher = make_teacher()
    before = copy.deepcopy(teacher.state_dict())
    student = make_student(teacher, num_attention_heads=2, intermediate_size=8).train()
    copy_layers(student, ALL, teacher)
    with torch.no_grad():
        for parameter in student.encoder.parameters():
            parameter.add_(1)
        student.embeddings.LayerNorm.weight.add_(1)
    assert student.training
    assert teacher.state_dict().keys() == before.keys()
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("kind", ["distilbert", "roberta-prelayernorm", "relative positions"])
def test_other_architectures_are_refused(kind):
    shape = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": HEADS}
    if kind == "distilbert":
        teacher = DistilBertModel(
            DistilBertConfig(vocab_size=VOCABULARY, dim=HIDDEN, n_heads=2, n_layers=1, hidden_dim=8)
        )
    elif kind == "relative positions":
        teacher = make_teacher()
        teacher.config.position_embedding_type = "relative_key"
    else:
        teacher = RobertaPreLayerNormModel(RobertaPreLayerNormConfig(**shape, intermediate_size=NEURONS))
    student = make_student(make_teacher())
    for refuse in (lambda: check_copyable(teacher), lambda: copy_layers(student, {1: 1}, teacher)):
        with pytest.raises(ValueError, match=f"model_type='{teacher.config.model_type}'.*student_init='embeddings'"):
            refuse()


def test_a_teacher_with_smaller_word_embeddings_is_refused():
    teacher = ElectraModel(ElectraConfig(**SHAPE, embedding_size=12))
    with pytest.raises(ValueError, match=r"embedding_size=12 is not its hidden_size=16 .* student_init='embeddings'"):
        check_copyable(teacher)


@pytest.mark.parametrize("width", [12, 24])
def test_another_width_is_refused(width):
    teacher = make_teacher()
    message = (
        rf"hidden_size={width} cannot start as copies of layers of a teacher of hidden size 16; "
        "choose student_init='embeddings' or hidden_size=16"
    )
    with pytest.raises(ValueError, match=message):
        copy_layers(make_student(teacher, hidden_size=width), {1: 1}, teacher)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({1: 1, 2: 5}, "student_layers names layer 5 of the teacher, which does not exist; choose from 1 to 4"),
        ({1: 1, 2: 0}, "student_layers names layer 0 of the teacher, which does not exist; choose from 1 to 4"),
        ({1: 1, 3: 1}, "student_layers names layer 3 of the student, which does not exist; choose from 1 to 2"),
    ],
)
def test_layers_that_do_not_exist_are_named_before_anything_is_copied(layers, message):
    teacher = make_teacher()
    student = make_student(teacher, num_hidden_layers=2)
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ValueError, match=message):
        copy_layers(student, layers, teacher)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_student_that_starts_as_its_teacher_learns_everything_but_the_table():
    teacher = make_teacher()
    config = KDNASConfig(**SHAPE, pad_token_id=0, max_position_embeddings=POSITIONS + 2)
    student = create_student(config, TeacherEmbeddings.from_teacher(teacher))
    copy_layers(student, ALL, teacher)
    frozen = [name for name, parameter in student.named_parameters() if not parameter.requires_grad]
    assert frozen == ["embeddings.word_embeddings.table"]
    assert isinstance(student.embeddings.LayerNorm, nn.LayerNorm)
