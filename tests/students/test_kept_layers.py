"""Configurations that name the teacher layers which their layers start as copies of."""

import pytest
from test_starts import copied_layers, shape_of, start

from kdnas_hf import KDNASConfig, KDNASModel
from kdnas_hf.students import Architecture


def test_layers_start_as_copies_of_those_that_the_configuration_names(teacher, tmp_path):
    for init in ("auto", "layers"):
        config = shape_of(teacher, 2, teacher_layers=[1, 4])
        made = start(config, teacher, tmp_path, student_init=init, student_layers=[2, 3])  # for those that name none
        assert copied_layers(made, teacher) == [1, 4]
        assert made.config.teacher_layers == [1, 4]
    assert copied_layers(start(shape_of(teacher, 2), teacher, tmp_path, student_layers=[2, 3]), teacher) == [2, 3]


def test_they_are_saved_with_the_student(teacher, tmp_path):
    made = start(shape_of(teacher, 3, teacher_layers=(1, 2, 4)), teacher, tmp_path)
    made.save_pretrained(tmp_path / "saved")
    assert KDNASModel.from_pretrained(tmp_path / "saved").config.teacher_layers == [1, 2, 4]
    assert KDNASConfig.from_pretrained(tmp_path / "saved") == made.config
    start(shape_of(teacher, 3), teacher, tmp_path).save_pretrained(tmp_path / "other")
    assert KDNASConfig.from_pretrained(tmp_path / "other").teacher_layers is None


def test_an_architecture_hands_them_on():
    config = Architecture(2, 2, 8, 16, teacher_layers=(3, 4)).to_config(vocab_size=10)
    assert config.teacher_layers == [3, 4]
    assert Architecture(2, 2, 8, 16).to_config(vocab_size=10).teacher_layers is None


@pytest.mark.parametrize(
    ("shape", "init", "message"),
    [
        ({"teacher_layers": [1, 5]}, "auto", r"^teacher_layers=\[1, 5\]: the teacher has layers 1 to 4, .* no 5\.$"),
        ({"teacher_layers": [4]}, "layers", r"^teacher_layers=\[4\] names 1 layers for a student of 2; name one"),
        ({"teacher_layers": [1, 2]}, "random", "go with student_init=layers, not random; leave one of them out"),
        ({"teacher_layers": [1, 2]}, "embeddings", "go with student_init=layers, not embeddings"),
        (
            {"teacher_layers": [1, 2], "hidden_size": 16},
            "auto",
            "^hidden_size=16 cannot start as copies of layers of a teacher of hidden size 32; choose "
            "student_init=embeddings without teacher_layers, or hidden_size=32.$",
        ),
    ],
)
def test_what_the_teacher_cannot_give_is_refused_in_one_line(shape, init, message, teacher, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        start(shape_of(teacher, 2, **shape), teacher, tmp_path, student_init=init)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layers", [[0, 1], ["a"], [1.5]])
def test_what_are_no_layers_is_refused_by_the_configuration(layers):
    with pytest.raises(ValueError, match="teacher_layers=.* must be a positive integer"):
        KDNASConfig(num_hidden_layers=2, teacher_layers=layers)
