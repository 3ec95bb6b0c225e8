"""Where a student starts: copies of named layers, its teacher's embeddings, or random values."""

import pytest
import torch
from test_trainer import SHAPES, arguments
from transformers import AutoModel

from kdnas_hf import (
    DistillationTrainer,
    DistillationTrainingArguments,
    KDNASConfig,
    StudentPool,
    load_teacher,
    parse_arguments,
)
from kdnas_hf.students import InheritedWordEmbeddings
from kdnas_hf.students.starts import default_layers
from kdnas_hf.utils.dimensions import TeacherDimensions

DIMENSIONS = TeacherDimensions(num_layers=4, hidden_size=32, num_attention_heads=4, vocab_size=145)


def shape_of(teacher, layers, **changes):
    """A configuration of the teacher's width."""
    shape = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 66}
    return KDNASConfig(num_hidden_layers=layers, vocab_size=teacher.dimensions.vocab_size, **shape | changes)


def start(config, teacher, folder, **changes):
    return StudentPool.create({"student": config}, teacher, arguments(folder, **changes)).students["student"]


def copied_layers(student, teacher):
    """For each layer of a student the teacher's layer of which it is an exact copy, from 1; None where it is none."""

    def parts(layer):
        names = (
            "attention.self.query",
            "attention.self.value",
            "intermediate.dense",
            "output.dense",
            "output.LayerNorm",
        )
        return [p for name in names for p in layer.get_submodule(name).parameters()]

    theirs = {number: parts(layer) for number, layer in enumerate(teacher.model.encoder.layer, start=1)}
    return [
        next((n for n, own in theirs.items() if all(map(torch.equal, parts(layer), own))), None)
        for layer in student.encoder.layer
    ]


@pytest.mark.parametrize("init", ["auto", "layers"])
def test_layers_are_exact_copies_of_those_that_are_named(init, teacher, tmp_path):
    for layers in ([1, 4], [3, 2], [2, 2]):
        made = start(shape_of(teacher, 2), teacher, tmp_path, student_init=init, student_layers=layers)
        assert copied_layers(made, teacher) == layers
    # with smaller word embeddings as well, where "auto" alone would not copy
    factorized = shape_of(teacher, 2, embedding_size=16)
    made = start(factorized, teacher, tmp_path, student_init=init, student_layers=[1, 3])
    assert copied_layers(made, teacher) == [1, 3]


@pytest.mark.parametrize(
    ("depth", "teacher_layers", "layers"),
    [
        (1, 4, [3]),
        (2, 4, [2, 4]),
        (4, 4, [1, 2, 3, 4]),
        (6, 4, [1, 2, 2, 3, 4, 4]),  # deeper than its teacher
        (3, 12, [3, 7, 11]),
        (6, 12, [2, 4, 6, 8, 10, 12]),
    ],
)
def test_by_default_a_layer_starts_as_the_middle_of_its_share_of_the_teacher(
    depth, teacher_layers, layers, teacher, tmp_path
):
    assert default_layers(depth, teacher_layers) == layers
    if teacher_layers == 4:
        for mapping in ("uniform", "final"):  # whatever it learns from
            made = start(shape_of(teacher, depth), teacher, tmp_path, layer_mapping=mapping)
            assert copied_layers(made, teacher) == layers


def test_a_student_of_the_teachers_shape_explains_all_of_it_before_the_first_step(
    teacher, train_texts, heldout_texts, tmp_path
):
    config = shape_of(teacher, 4, layer_norm_eps=teacher.model.config.layer_norm_eps)
    args = arguments(tmp_path, statistics_sentences=256)
    metrics = DistillationTrainer(config, teacher, args, train_texts, heldout_texts).evaluate()
    assert min(metrics[f"eval_r2_layer_{layer}"] for layer in (1, 2, 3, 4)) >= 0.999


def test_a_student_of_another_width_starts_from_the_embeddings(teacher, tmp_path):
    config = KDNASConfig(**SHAPES["deep"], vocab_size=teacher.dimensions.vocab_size, max_position_embeddings=66)
    made = start(config, teacher, tmp_path)
    assert isinstance(made.get_input_embeddings(), InheritedWordEmbeddings)
    given = start(config, teacher, tmp_path, student_init="embeddings")
    assert all(torch.equal(value, given.state_dict()[key]) for key, value in made.state_dict().items())
    assert (
        copied_layers(start(shape_of(teacher, 2), teacher, tmp_path, student_init="embeddings"), teacher) == [None] * 2
    )


BAD_STARTS = [
    (
        {"student_layers": [1, 5]},
        (32, 2),
        r"^student_layers=\[1, 5\]: the teacher has layers 1 to 4, .* there is no 5\.$",
    ),
    (
        {"student_layers": [1, 4]},
        (32, 3),
        r"^student_layers=\[1, 4\] names 2 layers for a student of 3; name one for each",
    ),
    (
        {"student_layers": [1, 4]},
        (16, 2),
        "^hidden_size=16 cannot start as copies of layers of a teacher of hidden size 32",
    ),
    (
        {"student_init": "layers"},
        (16, 2),
        "; choose student_init=embeddings without student_layers, or hidden_size=32.$",
    ),
]


@pytest.mark.parametrize(("changes", "shape", "message"), BAD_STARTS)
def test_starts_that_the_teacher_cannot_give_are_refused(changes, shape, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        arguments(tmp_path, **changes).start.check(DIMENSIONS.hidden_size, DIMENSIONS.num_layers, [shape])
    assert "\n" not in str(error.value)


def test_they_are_refused_before_the_teachers_weights_are_loaded(teacher_path, tmp_path, monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(AutoModel, "from_pretrained", load)
    for changes, shape, message in BAD_STARTS:
        args = arguments(tmp_path, **changes)
        with pytest.raises(ValueError, match=message):
            load_teacher(
                str(teacher_path),
                check=lambda d, args=args, shape=shape: args.start.check(d.hidden_size, d.num_layers, [shape]),
            )


@pytest.mark.parametrize("init", ["random", "embeddings"])
def test_layers_to_copy_do_not_go_with_another_start(init, tmp_path):
    message = rf"student_layers=\[1, 2\] go with student_init=layers, not {init}; leave one of them out"
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, student_init=init, student_layers=[1, 2])


@pytest.mark.parametrize("layers", [[], [0, 1], ["a"]])
def test_what_is_no_list_of_layers_is_refused(layers, tmp_path):
    with pytest.raises(ValueError, match="are not layers of the teacher, counted from 1, as '1 6'"):
        arguments(tmp_path, student_layers=layers)


def test_layers_are_named_on_the_command_line(tmp_path):
    argv = ["--student_layers", "1", "4", "--output_dir", str(tmp_path), "--use_cpu", "--report_to", "none"]
    (args,) = parse_arguments((DistillationTrainingArguments,), argv)
    assert args.student_layers == [1, 4]


def test_a_start_that_does_not_fit_is_refused_by_the_trainer(teacher, train_texts, tmp_path):
    config = KDNASConfig(**SHAPES["deep"], vocab_size=teacher.dimensions.vocab_size, max_position_embeddings=66)
    with pytest.raises(ValueError, match="hidden_size=16 cannot start as copies"):
        DistillationTrainer(config, teacher, arguments(tmp_path, student_init="layers"), train_texts)
