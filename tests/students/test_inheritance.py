"""Inherited embeddings: what a student takes from its teacher, and that a checkpoint of it is an ordinary one."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from kdnas_hf.students import (
    InheritedWordEmbeddings,
    KDNASConfig,
    KDNASForMaskedLM,
    KDNASForTokenClassification,
    KDNASModel,
    TeacherEmbeddings,
    create_student,
    fold_embeddings,
    inherit_word_embeddings,
    inheritance,
    residual_basis,
)

VOCABULARY = 90
HIDDEN = 16
POSITIONS = 24
COMMON = {"vocab_size": VOCABULARY, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
BERT_LIKE = {**COMMON, "hidden_size": HIDDEN, "max_position_embeddings": POSITIONS, "pad_token_id": 0}
ROBERTA_LIKE = {**COMMON, "hidden_size": HIDDEN, "max_position_embeddings": POSITIONS, "pad_token_id": 1}
# for each teacher: size of its word embeddings, number of positions counted from 0, row of position 0
TEACHERS = {
    "bert": (BertModel, BertConfig(**BERT_LIKE), HIDDEN, POSITIONS, 0),
    "roberta": (RobertaModel, RobertaConfig(**ROBERTA_LIKE), HIDDEN, POSITIONS - 2, 2),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig(**ROBERTA_LIKE), HIDDEN, POSITIONS - 2, 2),
    "distilbert": (
        DistilBertModel,
        DistilBertConfig(
            vocab_size=VOCABULARY, n_layers=1, n_heads=2, dim=HIDDEN, hidden_dim=32, max_position_embeddings=POSITIONS
        ),
        HIDDEN,
        POSITIONS,
        0,
    ),
    "modernbert": (ModernBertModel, ModernBertConfig(**BERT_LIKE, cls_token_id=2, sep_token_id=3), HIDDEN, None, None),
    "electra": (ElectraModel, ElectraConfig(**BERT_LIKE, embedding_size=12), 12, POSITIONS, 0),
    "albert": (AlbertModel, AlbertConfig(**BERT_LIKE, embedding_size=12), 12, POSITIONS, 0),
}


def make_teacher(name="xlm-roberta"):
    model_class, config, *_ = TEACHERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
        embeddings = model.get_input_embeddings()
        # directions of clearly different variance, and a mean that is not one of them
        with torch.no_grad():
            embeddings.weight.mul_(torch.linspace(5, 1, embeddings.weight.shape[1])).add_(0.3)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def teacher():
    return make_teacher()


@pytest.fixture(scope="module")
def embeddings(teacher):
    return TeacherEmbeddings.from_teacher(teacher)


def make_config(**fields):
    defaults = {
        "vocab_size": VOCABULARY,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 32,
    }
    return KDNASConfig(**{**defaults, **fields})


@pytest.fixture
def input_ids():
    ids = torch.randint(3, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    ids[1, 5:] = 1
    return ids


def outputs(model, input_ids):
    with torch.no_grad():
        return model(input_ids, attention_mask=input_ids.ne(1).long())[0]


# ---- what a teacher gives ----


@pytest.mark.parametrize("name", TEACHERS)
def test_embeddings_are_taken_from_every_kind_of_teacher(name):
    model = make_teacher(name)
    _, _, size, positions, first = TEACHERS[name]
    taken = TeacherEmbeddings.from_teacher(model)
    assert taken.table.shape == (VOCABULARY, size)
    assert torch.equal(taken.table, model.get_input_embeddings().weight)
    assert taken.pad_token_id == model.config.pad_token_id
    if positions is None:
        assert taken.positions is None
    else:
        assert torch.equal(taken.positions, model.embeddings.position_embeddings.weight[first:])
        assert len(taken.positions) == positions
    if name in ("distilbert", "modernbert"):
        assert taken.token_types is None
    else:
        assert torch.equal(taken.token_types, model.embeddings.token_type_embeddings.weight)
    assert (taken.norm is None) == (name == "modernbert")  # whose norm has another name, and no bias
    student = create_student(make_config(hidden_size=8), taken)
    assert student(torch.tensor([[5, 6, 7]])).last_hidden_state.shape == (1, 3, 8)


def test_the_table_is_frozen_float32_and_shares_the_memory_of_a_float32_teacher(teacher, embeddings):
    assert isinstance(embeddings.table, nn.Parameter)
    assert not embeddings.table.requires_grad
    assert embeddings.table.data_ptr() == teacher.get_input_embeddings().weight.data_ptr()
    half = make_teacher().to(torch.bfloat16)
    assert TeacherEmbeddings.from_teacher(half).table.dtype == torch.float32
    assert half.dtype == torch.bfloat16


def test_the_basis_holds_the_principal_directions(embeddings, monkeypatch):
    basis = embeddings.basis
    torch.testing.assert_close(basis.T @ basis, torch.eye(HIDDEN), rtol=0, atol=1e-5)
    variances = (embeddings.table @ basis).var(dim=0)
    assert (variances.diff() <= 1e-6).all()
    # a slow and obvious way to the same
    centred = embeddings.table.double() - embeddings.table.double().mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close((directions @ basis.double()).abs(), torch.eye(HIDDEN).double(), rtol=0, atol=1e-5)
    # signs do not depend on the solver
    assert (basis.gather(0, basis.abs().argmax(dim=0, keepdim=True)) > 0).all()
    monkeypatch.setattr(inheritance, "_ROWS_PER_CHUNK", 7)
    torch.testing.assert_close(inheritance._principal_directions(embeddings.table), basis)


# ---- where a student starts ----


def test_principal_directions_are_computed_when_they_are_needed_and_once(monkeypatch):
    computed = []
    monkeypatch.setattr(inheritance, "_principal_directions", lambda table: computed.append(1) or torch.eye(HIDDEN))
    taken = TeacherEmbeddings.from_teacher(make_teacher())
    create_student(make_config(hidden_size=HIDDEN), taken)
    residual_basis(taken, HIDDEN, HIDDEN)
    assert not computed
    for size in (4, 8):
        create_student(make_config(hidden_size=size), taken)
    assert len(computed) == 1


def test_directions_are_the_teachers_own_axes_at_its_size_and_principal_at_any_other(embeddings):
    assert torch.equal(embeddings.directions(HIDDEN), torch.eye(HIDDEN))
    assert torch.equal(embeddings.directions(8), embeddings.basis[:, :8])
    assert torch.equal(embeddings.directions(HIDDEN + 4), embeddings.basis)


def lively(model):
    """The model with random parameters, so that token types and norms do something."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data.normal_(mean=0.3, std=0.3, generator=generator)
    return model


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert"])
def test_a_student_of_full_size_starts_with_the_teachers_embeddings(name):
    model = lively(make_teacher(name))
    pad, size = model.config.pad_token_id, TEACHERS[name][2]
    taken = TeacherEmbeddings.from_teacher(model)
    eps = model.embeddings.LayerNorm.eps
    student = create_student(make_config(hidden_size=size, pad_token_id=pad, layer_norm_eps=eps), taken).eval()
    input_ids = torch.randint(3, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(student.embeddings(input_ids), model.embeddings(input_ids), rtol=1e-5, atol=1e-5)


def test_a_factorised_student_of_full_size_lives_on_the_teachers_axes(embeddings, input_ids):
    student = create_student(make_config(hidden_size=HIDDEN, embedding_size=4), embeddings)
    ours = student.embeddings.projection(student.embeddings.word_embeddings(input_ids))
    first = embeddings.basis[:, :4]
    torch.testing.assert_close(ours, (embeddings.table @ first @ first.T)[input_ids], rtol=0, atol=1e-5)
    rows = student.embeddings.position_embeddings.weight[2:POSITIONS]
    torch.testing.assert_close(rows, embeddings.positions)


@pytest.mark.parametrize("hidden_size", [8, HIDDEN + 4])
def test_word_embeddings_of_full_size_are_mapped_to_the_principal_directions(embeddings, input_ids, hidden_size):
    student = create_student(make_config(hidden_size=hidden_size, embedding_size=HIDDEN), embeddings)
    ours = student.embeddings.projection(student.embeddings.word_embeddings(input_ids))
    basis = residual_basis(embeddings, hidden_size, HIDDEN)
    torch.testing.assert_close(ours, (embeddings.table @ basis)[input_ids], rtol=0, atol=1e-5)


def test_a_smaller_student_starts_with_the_first_directions(embeddings):
    student = create_student(make_config(hidden_size=8), embeddings)
    expected = embeddings.table @ embeddings.basis[:, :8]
    torch.testing.assert_close(student.embeddings.word_embeddings.weight, expected)
    ids = torch.tensor([[4, 9, 1]])
    torch.testing.assert_close(student.embeddings.word_embeddings(ids), expected[ids])
    rows = student.embeddings.position_embeddings.weight
    torch.testing.assert_close(rows[2 : 2 + POSITIONS - 2], embeddings.positions @ embeddings.basis[:, :8])


def test_positions_beyond_the_teachers_keep_their_ordinary_start(embeddings):
    longer = create_student(make_config(max_position_embeddings=64), embeddings)
    ordinary = longer.embeddings.position_embeddings.weight[POSITIONS:]
    assert 0.01 < ordinary.std() < 0.03
    shorter = create_student(make_config(max_position_embeddings=10), embeddings)
    torch.testing.assert_close(
        shorter.embeddings.position_embeddings.weight[2:], embeddings.positions[:8] @ embeddings.basis[:, :8]
    )


def test_positions_count_from_the_students_padding_token():
    taken = TeacherEmbeddings.from_teacher(make_teacher("bert"))
    student = create_student(make_config(pad_token_id=0, hidden_size=HIDDEN), taken)
    assert torch.equal(student.embeddings.position_embeddings.weight[1 : 1 + POSITIONS], taken.positions)


def test_a_factorised_student_starts_in_the_same_basis(embeddings, input_ids):
    student = create_student(make_config(hidden_size=8, embedding_size=4), embeddings)
    assert torch.equal(student.embeddings.projection.weight, torch.eye(8, 4))
    states = student.embeddings.projection(student.embeddings.word_embeddings(input_ids))
    torch.testing.assert_close(states[..., :4], (embeddings.table @ embeddings.basis[:, :4])[input_ids])
    assert not states[..., 4:].any()


def test_a_student_wider_than_the_teacher_starts_with_small_random_columns(embeddings):
    student = create_student(make_config(hidden_size=HIDDEN + 4), embeddings)
    projection = student.embeddings.word_embeddings.projection
    assert torch.equal(projection[:, :HIDDEN], embeddings.basis)
    assert 0 < projection[:, HIDDEN:].abs().max() < 0.1
    assert student.embeddings.position_embeddings.weight[2:POSITIONS, HIDDEN:].std() > 0.01


def test_residual_basis_leads_back_to_the_teacher(embeddings):
    assert torch.equal(residual_basis(embeddings, 8, HIDDEN), embeddings.basis[:, :8])
    assert torch.equal(residual_basis(embeddings, HIDDEN, HIDDEN), torch.eye(HIDDEN))
    wide = residual_basis(embeddings, HIDDEN + 4, HIDDEN)
    assert torch.equal(wide[:, :HIDDEN], embeddings.basis)
    assert wide.shape == (HIDDEN, HIDDEN + 4)
    assert not wide[:, HIDDEN:].any()
    assert residual_basis(TeacherEmbeddings.from_teacher(make_teacher("albert")), 8, HIDDEN) is None


@pytest.mark.parametrize("student_init", ["embeddings", "random"])
def test_a_student_is_made_by_its_seed_alone(embeddings, student_init):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = create_student(make_config(), embeddings, student_init=student_init, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again = create_student(make_config(), embeddings, student_init=student_init, seed=3)
    other = create_student(make_config(), embeddings, student_init=student_init, seed=4)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
    query = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(first.get_parameter(query), other.get_parameter(query))


def test_a_random_student_inherits_nothing():
    student = create_student(make_config(), student_init="random")
    assert isinstance(student.get_input_embeddings(), nn.Embedding)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_the_full_random_table_is_never_made(embeddings, monkeypatch):
    rows = []
    make = nn.Embedding.__init__

    def watched(self, num_embeddings, *args, **kwargs):
        rows.append(num_embeddings)
        make(self, num_embeddings, *args, **kwargs)

    monkeypatch.setattr(nn.Embedding, "__init__", watched)
    config = make_config()
    student = create_student(config, embeddings)
    assert rows
    assert max(rows) < VOCABULARY
    assert student.config == config
    assert student.config is not config
    assert student.encoder.layer[0].attention.self.config is student.config


@pytest.mark.parametrize(
    ("config", "given", "student_init", "message"),
    [
        (make_config(), True, "teacher", "student_init='teacher' is unknown; choose from embeddings, random"),
        (make_config(), False, "embeddings", "needs teacher_embeddings"),
        (make_config(vocab_size=80), True, "embeddings", r"vocab_size=80 does not fit .* table of 90 rows"),
    ],
)
def test_errors_of_create_student(embeddings, config, given, student_init, message):
    with pytest.raises(ValueError, match=message):
        create_student(config, embeddings if given else None, student_init=student_init)


# ---- the shared table ----


def test_students_share_one_table_and_learn_only_projections(embeddings, input_ids):
    students = [create_student(make_config(hidden_size=size), embeddings) for size in (8, 12)]
    for student in students:
        word_embeddings = student.get_input_embeddings()
        assert word_embeddings.table is embeddings.table
        assert (word_embeddings.num_embeddings, word_embeddings.padding_idx) == (VOCABULARY, 1)
        assert word_embeddings.embedding_dim == student.config.hidden_size
        student(input_ids)[0].square().sum().backward()
        assert word_embeddings.projection.grad.any()
    assert embeddings.table.grad is None


def test_casting_or_copying_a_student_leaves_the_table_to_the_others(embeddings, input_ids):
    first, second = (create_student(make_config(), embeddings).eval() for _ in range(2))
    expected = outputs(second, input_ids)
    first.to(torch.bfloat16)
    assert embeddings.table.dtype == torch.float32
    assert first.get_input_embeddings().table is embeddings.table
    assert outputs(first, input_ids).dtype == torch.bfloat16
    assert torch.equal(outputs(second, input_ids), expected)
    copied = copy.deepcopy(second)
    assert copied.get_input_embeddings().table is embeddings.table
    assert copied.get_input_embeddings().projection is not second.get_input_embeddings().projection
    assert torch.equal(outputs(copied, input_ids), expected)
    assert set(dict(copied.named_parameters())) == set(dict(second.named_parameters()))


def test_moving_a_student_moves_the_table_for_all(embeddings):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    own = TeacherEmbeddings.from_teacher(make_teacher())
    first, second = (create_student(make_config(), own) for _ in range(2))
    first.to("cuda")
    assert own.table.device.type == "cuda"
    assert second.get_input_embeddings().table is own.table


# ---- checkpoints ----


@pytest.mark.parametrize("embedding_size", [None, 4, 20])
def test_a_checkpoint_is_an_ordinary_one_with_the_same_outputs(embeddings, input_ids, tmp_path, embedding_size):
    student = create_student(make_config(embedding_size=embedding_size), embeddings).eval()
    assert set(student.state_dict()) == set(KDNASModel(student.config).state_dict())
    student.save_pretrained(tmp_path)
    loaded, info = KDNASModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert isinstance(loaded.get_input_embeddings(), nn.Embedding)
    torch.testing.assert_close(outputs(loaded.eval(), input_ids), outputs(student, input_ids), rtol=0, atol=1e-5)


def make_inheriting_masked_lm(embeddings, **fields):
    config = make_config(**fields)
    model = KDNASForMaskedLM(config).eval()
    projection = torch.randn(HIDDEN, config.word_embedding_size)
    inherit_word_embeddings(model, InheritedWordEmbeddings(embeddings.table, projection, padding_idx=1))
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.randn(VOCABULARY))
    return model


@pytest.mark.parametrize("embedding_size", [None, 4])
def test_a_masked_lm_head_decodes_with_inherited_embeddings(embeddings, input_ids, tmp_path, embedding_size):
    model = make_inheriting_masked_lm(embeddings, embedding_size=embedding_size)
    expected = outputs(model, input_ids)
    model.save_pretrained(tmp_path)
    loaded, info = KDNASForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(outputs(loaded.eval(), input_ids), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(outputs(copy.deepcopy(model), input_ids), expected)
    fold_embeddings(model)
    torch.testing.assert_close(outputs(model, input_ids), expected, rtol=0, atol=1e-4)
    assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
    assert model.lm_head.decoder.bias is model.lm_head.bias
    model(input_ids, labels=input_ids).loss.backward()
    assert model.get_input_embeddings().weight.grad.any()


def test_folding_changes_no_output_and_makes_everything_trainable(embeddings, input_ids):
    student = create_student(make_config(), embeddings).eval()
    expected = outputs(student, input_ids)
    with torch.no_grad():
        table = embeddings.table.clone()
    fold_embeddings(student)
    folded = student.get_input_embeddings()
    assert type(folded) is nn.Embedding
    assert folded.padding_idx == 1
    assert all(parameter.requires_grad for parameter in student.parameters())
    torch.testing.assert_close(outputs(student, input_ids), expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        folded.weight.add_(1)
    assert torch.equal(embeddings.table, table)
    fold_embeddings(student)
    assert student.get_input_embeddings() is folded


def test_a_head_on_inherited_embeddings_can_be_folded(embeddings, input_ids):
    model = KDNASForTokenClassification(make_config(num_labels=3)).eval()
    inherit_word_embeddings(model, InheritedWordEmbeddings(embeddings.table, embeddings.basis[:, :8]))
    expected = outputs(model, input_ids)
    fold_embeddings(model)
    torch.testing.assert_close(outputs(model, input_ids), expected, rtol=0, atol=1e-5)


def test_loading_a_state_dict_into_inherited_embeddings_is_refused(embeddings):
    student = create_student(make_config(), embeddings)
    with pytest.raises(
        RuntimeError, match=r"cannot load .* embeddings\.word_embeddings: .* fold_embeddings\(student\)"
    ):
        student.load_state_dict(student.state_dict())
    weights = student.state_dict()
    fold_embeddings(student)
    student.load_state_dict(weights)


def test_inherited_embeddings_must_fit_the_model(embeddings):
    with pytest.raises(ValueError, match="are 90 x 4, but the model has vocab_size=90 and word_embedding_size=8"):
        inherit_word_embeddings(
            KDNASModel(make_config()), InheritedWordEmbeddings(embeddings.table, embeddings.basis[:, :4])
        )
    untied = KDNASForMaskedLM(make_config(tie_word_embeddings=False))
    with pytest.raises(ValueError, match="tie_word_embeddings=False"):
        inherit_word_embeddings(untied, InheritedWordEmbeddings(embeddings.table, embeddings.basis[:, :8]))
