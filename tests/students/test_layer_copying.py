"""Copied layers: exact where they can be, the important parts where they are smaller, fitted where text is given."""

import copy

import pytest
import torch
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
)

from kdnas_hf.students import KDNASConfig, KDNASModel, TeacherEmbeddings, create_student, residual_basis
from kdnas_hf.students.layer_copying import (
    AffineMap,
    _low_rank,
    collect_layer_samples,
    copy_layers,
    read_teacher_layers,
)

VOCABULARY, HIDDEN, LAYERS, HEADS, NEURONS = 60, 16, 4, 4, 24


def make_teacher(seed=0, **fields):
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=NEURONS,
        max_position_embeddings=20,
        pad_token_id=0,
        layer_norm_eps=1e-5,
        **fields,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False).eval()
        for name, parameter in model.named_parameters():
            # initial layers hardly do anything, initial biases and norms nothing at all
            if parameter.dim() > 1:
                parameter.data.mul_(10)
            elif "LayerNorm.weight" in name:
                parameter.data.uniform_(0.5, 1.5)
            else:
                parameter.data.normal_(std=0.3)
    return model.requires_grad_(False)


def make_config(**fields):
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": NEURONS,
        "max_position_embeddings": 21,
        "pad_token_id": 0,
        "type_vocab_size": 2,
    }
    return KDNASConfig(**{**shape, **fields})


def make_student(teacher, rotation=None, seed=0, **fields):
    """A student of the teacher's hidden size, whose embeddings are the teacher's in the given basis."""
    torch.manual_seed(seed)
    student = KDNASModel(make_config(**fields)).eval().requires_grad_(False)
    theirs, ours = teacher.embeddings, student.embeddings
    rotation = torch.eye(HIDDEN) if rotation is None else rotation
    ours.word_embeddings.weight.copy_(theirs.word_embeddings.weight @ rotation)
    ours.position_embeddings.weight[1:].copy_(theirs.position_embeddings.weight @ rotation)
    ours.token_type_embeddings.weight.copy_(theirs.token_type_embeddings.weight @ rotation)
    ours.LayerNorm.weight.copy_(theirs.LayerNorm.weight)
    ours.LayerNorm.bias.copy_(rotation.T @ theirs.LayerNorm.bias)
    return student


def make_batches(count=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        input_ids = torch.randint(1, VOCABULARY, (8, 10), generator=generator)
        lengths = torch.randint(3, 11, (8, 1), generator=generator)
        mask = (torch.arange(10) < lengths).long()
        batches.append({"input_ids": input_ids * mask, "attention_mask": mask})
    return batches


def states(model, batches=None):
    """States of the embeddings and of all layers, at real tokens."""
    batches = make_batches() if batches is None else batches
    runs = [(model(**batch, output_hidden_states=True).hidden_states, batch["attention_mask"]) for batch in batches]
    return [
        torch.cat([hidden[layer][mask.bool()] for hidden, mask in runs])
        for layer in range(model.config.num_hidden_layers + 1)
    ]


def copied(teacher, student, basis=None, layers=None, **options):
    layers = {n: n for n in range(1, student.config.num_hidden_layers + 1)} if layers is None else layers
    basis = torch.eye(HIDDEN) if basis is None else basis
    copy_layers(student, layers, read_teacher_layers(teacher), basis, **options)
    return student


def orthogonal(size, seed=3):
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))[0]


def assert_same_states(student, teacher, basis=None):
    for ours, theirs in zip(states(student), states(teacher), strict=True):
        torch.testing.assert_close(ours if basis is None else ours @ basis.T, theirs, rtol=0, atol=1e-5)


# ---- exact copies ----


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_student_of_the_teachers_shape_computes_what_the_teacher_computes(attention):
    teacher = make_teacher(attn_implementation=attention)
    assert_same_states(copied(teacher, make_student(teacher)), teacher)


def test_a_rotated_student_computes_the_rotated_states_where_norms_commute_with_the_rotation():
    # a norm commutes with a rotation if it weighs all dimensions alike and the mean, which it takes away, is a
    # direction that the rotation keeps: here B keeps the vector of ones
    ones = torch.full((HIDDEN, 1), HIDDEN**-0.5)
    complement = torch.linalg.qr(torch.cat([ones, torch.eye(HIDDEN)[:, 1:]], dim=1))[0][:, 1:]
    basis = ones @ ones.T + complement @ orthogonal(HIDDEN - 1) @ complement.T
    torch.testing.assert_close(basis.T @ basis, torch.eye(HIDDEN), rtol=0, atol=1e-5)
    teacher = make_teacher()
    for module in teacher.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.fill_(0.8)
    assert_same_states(copied(teacher, make_student(teacher, basis), basis), teacher, basis)


def test_more_neurons_change_nothing_at_first():
    teacher = make_teacher()
    student = copied(teacher, make_student(teacher, intermediate_size=NEURONS + 16))
    assert_same_states(student, teacher)
    assert (student.encoder.layer[0].intermediate.dense.weight[NEURONS:] != 0).any(dim=1).all()


def test_more_heads_than_the_teachers_change_nothing_at_first():
    teacher = make_teacher()
    for layer in teacher.encoder.layer:
        # the teacher's heads fit into half of their dimensions
        for linear in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value):
            linear.weight.view(HEADS, 2, 2, HIDDEN)[:, 1] = 0
            linear.bias.view(HEADS, 2, 2)[:, 1] = 0
    student = copied(teacher, make_student(teacher, num_attention_heads=2 * HEADS))
    assert_same_states(student, teacher)
    assert not student.encoder.layer[0].attention.output.dense.weight[:, HIDDEN // 2 :].any()


def zero_heads(teacher, keep):
    size = HIDDEN // HEADS
    for layer in teacher.encoder.layer:
        for head in set(range(HEADS)) - set(keep):
            layer.attention.output.dense.weight[:, head * size : (head + 1) * size] = 0


def test_larger_heads_hold_the_teachers_and_leave_room_to_learn():
    teacher = make_teacher()
    zero_heads(teacher, keep=(1, 3))
    student = copied(teacher, make_student(teacher, num_attention_heads=2))
    assert_same_states(student, teacher)
    attention = student.encoder.layer[0].attention
    # no dead ends: where the query or the output is zero, its partner is not
    assert (attention.self.key.weight != 0).any(dim=1).all()
    assert (attention.self.value.weight != 0).any(dim=1).all()
    assert (attention.self.query.weight[4:8] == 0).all()
    assert (attention.output.dense.weight[:, 4:8] == 0).all()


def test_the_least_important_heads_are_left_out():
    teacher = make_teacher()
    zero_heads(teacher, keep=(0, 2))
    assert_same_states(copied(teacher, make_student(teacher, num_attention_heads=2)), teacher)
    sample = collect_layer_samples(teacher, make_batches(), [2])
    assert ((sample.layers[2].head_importance > 1e-6) == torch.tensor([True, False, True, False])).all()


def test_the_least_important_neurons_are_left_out():
    teacher = make_teacher()
    dead = torch.randperm(NEURONS, generator=torch.Generator().manual_seed(0))[:10]
    for layer in teacher.encoder.layer:
        layer.output.dense.weight[:, dead] = 0
    assert_same_states(copied(teacher, make_student(teacher, intermediate_size=NEURONS - 10)), teacher)
    sample = collect_layer_samples(teacher, make_batches(), [1])
    assert set(sample.layers[1].neuron_importance.argsort()[:10].tolist()) == set(dead.tolist())


def test_heads_of_low_rank_fit_into_smaller_ones_exactly():
    teacher = make_teacher()
    for layer in teacher.encoder.layer:
        attend = layer.attention.self
        for first, second in ((attend.query, attend.key), (attend.value, layer.attention.output.dense)):
            for head in range(HEADS):
                rows = slice(4 * head, 4 * head + 4)
                # both bilinear forms of the head lose half their rank, in no particular dimensions
                turn = orthogonal(4, seed=head)[:, :2]
                first.weight[rows] = turn @ (turn.T @ first.weight[rows])
                first.bias[rows] = turn @ (turn.T @ first.bias[rows])
                if second is attend.key:
                    second.weight[rows] = turn @ (turn.T @ second.weight[rows])
    assert_same_states(copied(teacher, make_student(teacher, num_attention_heads=8)), teacher)


def test_low_rank_factors_are_the_best_ones():
    left, right = torch.randn(9, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    u, values, v = torch.linalg.svd(left @ right.T)
    for rank in (1, 3, 5):
        first, second = _low_rank(left, right, rank)
        assert first.shape == (9, rank)
        torch.testing.assert_close(first @ second.T, u[:, :rank] * values[:rank] @ v[:rank])


def test_layers_may_differ_in_shape_and_unmapped_ones_stay():
    teacher = make_teacher()
    fields = {"num_hidden_layers": 3, "num_attention_heads": [2, 4, 8], "intermediate_size": [8, 40, 24]}
    fields["hidden_act"] = ["gelu", "relu", "silu"]
    sample = collect_layer_samples(teacher, make_batches(), [1, 4])
    for options in ({}, {"sample": sample}):
        student = make_student(teacher, **fields)
        before = copy.deepcopy(student.encoder.layer[1].state_dict())
        copied(teacher, student, layers={1: 1, 3: 4}, **options)
        assert all(torch.equal(value, before[name]) for name, value in student.encoder.layer[1].state_dict().items())
        assert all(parameter.isfinite().all() for parameter in student.parameters())
        assert all(state.isfinite().all() for state in states(student))


def test_a_student_wider_than_its_teacher_starts_as_the_teacher_and_something_finite():
    teacher = make_teacher()
    embeddings = TeacherEmbeddings.from_teacher(teacher)
    student = create_student(make_config(hidden_size=24, max_position_embeddings=20), embeddings)
    basis = residual_basis(embeddings, 24, HIDDEN)
    copy_layers(student, {1: 1}, read_teacher_layers(teacher), basis)
    assert (student.encoder.layer[0].output.LayerNorm.weight[HIDDEN:] == 1).all()
    copy_layers(
        student, {1: 1}, read_teacher_layers(teacher), basis, collect_layer_samples(teacher, make_batches(), [1])
    )
    assert all(parameter.isfinite().all() for parameter in student.parameters())


# ---- fitted to a sample ----


def test_samples_are_what_the_teacher_computes_at_real_tokens():
    teacher = make_teacher()
    batches = make_batches()
    sample = collect_layer_samples(teacher, batches, [2, 4])
    expected = states(teacher, batches)
    for layer in (2, 4):
        torch.testing.assert_close(sample.layers[layer].attention_inputs, expected[layer - 1])
        torch.testing.assert_close(sample.layers[layer].outputs, expected[layer])
    block = teacher.encoder.layer[1]
    activations = block.intermediate(sample.layers[2].ffn_inputs)
    torch.testing.assert_close(block.output(activations, sample.layers[2].ffn_inputs), expected[2])
    importance = activations.abs().mean(0) * block.output.dense.weight.norm(dim=0)
    torch.testing.assert_close(sample.layers[2].neuron_importance, importance)


def test_the_importance_of_a_head_is_what_it_adds():
    teacher = make_teacher()
    batch = make_batches(1)[0]
    sample = collect_layer_samples(teacher, [batch], [1])
    attention = teacher.encoder.layer[0].attention
    contexts = []
    hook = attention.output.dense.register_forward_pre_hook(lambda module, inputs: contexts.append(inputs[0]))
    teacher(**batch)
    hook.remove()
    real = contexts[0][batch["attention_mask"].bool()]
    for head in range(HEADS):
        columns = slice(4 * head, 4 * head + 4)
        added = real[:, columns] @ attention.output.dense.weight[:, columns].T
        expected = added.square().sum(1).mean().sqrt()
        torch.testing.assert_close(sample.layers[1].head_importance[head], expected)


def test_a_sample_stops_when_it_has_enough_tokens_and_leaves_no_hooks():
    teacher = make_teacher()
    batches = make_batches()
    first = int(batches[0]["attention_mask"].sum())
    sample = collect_layer_samples(teacher, batches, [1], max_tokens=first)
    assert len(sample.batches) == 1
    assert len(sample.layers[1].outputs) == first
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())


def fitted_error(student, teacher, basis, pairs, batches):
    """Mean squared error of `B s` against the standardised teacher on held-out text, by student layer."""
    ours, theirs = states(student, batches), states(teacher, batches)
    errors = []
    for number, source in pairs.items():
        target = (theirs[source] - theirs[source].mean(0)) / theirs[source].std(0)
        errors.append(float((ours[number] @ basis.T - target).square().mean()))
    return errors


def test_fitting_lowers_the_error_on_text_that_it_has_not_seen():
    teacher = make_teacher()
    embeddings = TeacherEmbeddings.from_teacher(teacher)
    basis = residual_basis(embeddings, 12, HIDDEN)
    pairs = {1: 2, 2: 4}
    config = make_config(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=20)
    untouched, plain, fitted = (create_student(config, embeddings).eval() for _ in range(3))
    layers = read_teacher_layers(teacher)
    copy_layers(plain, pairs, layers, basis)
    copy_layers(fitted, pairs, layers, basis, collect_layer_samples(teacher, make_batches(32), pairs.values()))
    with torch.no_grad():
        unseen = make_batches(8, seed=2)
        errors = [fitted_error(student, teacher, basis, pairs, unseen) for student in (untouched, plain, fitted)]
    for layer in range(2):
        assert errors[2][layer] < 0.9  # 1 is what a constant earns
        assert errors[2][layer] < min(errors[0][layer], errors[1][layer])


def test_states_have_the_size_of_what_they_are_compared_with():
    teacher = make_teacher()
    for layer in teacher.encoder.layer:
        layer.output.LayerNorm.weight.mul_(5)
    sample = collect_layer_samples(teacher, make_batches(16), [1])
    raw = copied(teacher, make_student(teacher, num_hidden_layers=1), sample=sample, standardize=False)
    standardised = copied(teacher, make_student(teacher, num_hidden_layers=1), sample=sample)
    theirs = sample.layers[1].outputs
    torch.testing.assert_close(states(raw)[1].mean(0), theirs.mean(0), rtol=0.2, atol=0.5)
    assert 1 - (states(raw, make_batches(16))[1] - theirs).var() / theirs.var() > 0.5
    assert states(standardised, make_batches(16))[1].mean(0).abs().max() < 1e-3
    assert states(standardised)[1].std() < 1.1


# ---- what is promised about it ----


def test_copying_is_deterministic_and_leaves_the_teacher_and_the_mode_alone():
    teacher = make_teacher()
    before = copy.deepcopy(teacher.state_dict())
    sample = collect_layer_samples(teacher, make_batches(), [2, 4])
    students = [
        copied(teacher, student.train(), layers={1: 2, 2: 4}, sample=sample)
        for student in [make_student(teacher, num_hidden_layers=2) for _ in range(2)]
    ]
    for name, parameter in students[0].named_parameters():
        assert torch.equal(parameter, students[1].get_parameter(name)), name
    assert all(student.training for student in students)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("kind", ["electra", "roberta with a head", "bfloat16"])
def test_what_can_be_read(kind):
    fields = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": HEADS}
    fields["intermediate_size"] = NEURONS
    model = {
        "electra": lambda: ElectraModel(ElectraConfig(**fields, embedding_size=HIDDEN)),
        "roberta with a head": lambda: RobertaForMaskedLM(RobertaConfig(**fields)),
        "bfloat16": lambda: make_teacher().to(torch.bfloat16),
    }[kind]()
    layers = read_teacher_layers(model)
    assert len(layers) == model.config.num_hidden_layers
    assert isinstance(layers[0].query, AffineMap)
    assert layers[0].intermediate.weight.shape == (NEURONS, HIDDEN)
    assert layers[0].output.weight.dtype == torch.float32
    assert layers[0].num_heads == HEADS
    assert collect_layer_samples(model.eval(), make_batches(1), [1]).layers[1].outputs.dtype == torch.float32


@pytest.mark.parametrize("kind", ["distilbert", "roberta-prelayernorm", "relative positions"])
def test_other_architectures_are_refused(kind):
    fields = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": HEADS}
    if kind == "distilbert":
        model = DistilBertModel(
            DistilBertConfig(vocab_size=VOCABULARY, dim=HIDDEN, n_heads=2, n_layers=1, hidden_dim=8)
        )
    elif kind == "relative positions":
        model = make_teacher()
        model.config.position_embedding_type = "relative_key"
    else:
        model = RobertaPreLayerNormModel(RobertaPreLayerNormConfig(**fields, intermediate_size=NEURONS))
    for call in (read_teacher_layers, lambda refused: collect_layer_samples(refused, make_batches(), [1])):
        with pytest.raises(ValueError, match=f"model_type='{model.config.model_type}'.*student_init='embeddings'"):
            call(model)


def test_errors_name_what_is_wrong():
    teacher = make_teacher()
    student = make_student(teacher)
    sample = collect_layer_samples(teacher, make_batches(1), [1])
    for options, message in (
        ({"layers": {}}, "names no pair"),
        ({"layers": {5: 1}}, "student layer 5 does not exist; the student has layers 1 to 4"),
        ({"layers": {1: 0}}, "teacher layer 0 does not exist"),
        ({"layers": {1: 2}, "sample": sample}, r"lacks teacher layer 2; it has \[1\]"),
        ({"basis": torch.eye(HIDDEN)[:, :8]}, r"basis is \(16, 8\), but teacher and student have \(16, 16\)"),
    ):
        with pytest.raises(ValueError, match=message):
            copied(teacher, student, **options)
    with pytest.raises(ValueError, match="teacher layer 9 does not exist"):
        collect_layer_samples(teacher, make_batches(1), [9])
    with pytest.raises(ValueError, match="at least two tokens"):
        collect_layer_samples(teacher, [], [1])
