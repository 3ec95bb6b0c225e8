"""Which teacher layers a student layer learns from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdnas_hf.distillation import resolve_layer_mapping
from kdnas_hf.distillation.layer_mapping import describe_layer_mapping


def pairs(*items):
    return tuple(items)


def test_uniform_takes_the_teachers_layers_at_even_spacing():
    assert resolve_layer_mapping("uniform", 3, 12) == pairs((1, 4), (2, 8), (3, 12))
    assert resolve_layer_mapping("uniform", 6, 12) == pairs((1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12))
    # 12/5 = 2.4, 4.8, 7.2, 9.6, 12
    assert resolve_layer_mapping("uniform", 5, 12) == pairs((1, 2), (2, 5), (3, 7), (4, 10), (5, 12))


def test_last_takes_the_teachers_last_layers():
    assert resolve_layer_mapping("last", 3, 12) == pairs((1, 10), (2, 11), (3, 12))


def test_published_mapping_gives_each_layer_both():
    assert resolve_layer_mapping("uniform+last", 3, 12) == pairs((1, 4), (1, 10), (2, 8), (2, 11), (3, 12), (3, 12))


def test_final_maps_the_last_layer_only():
    assert resolve_layer_mapping("final", 3, 12) == pairs((3, 12))


def test_explicit_pairs_as_text_and_as_a_list():
    expected = pairs((1, 2), (3, 12))
    assert resolve_layer_mapping("3:12 1:2", 3, 12) == expected
    assert resolve_layer_mapping("1:2,3:12", 3, 12) == expected
    assert resolve_layer_mapping([(1, 2), (3, 12)], 3, 12) == expected


@given(st.integers(1, 24), st.integers(1, 24))
def test_the_last_student_layer_learns_from_the_last_teacher_layer(student, teacher):
    mapping = resolve_layer_mapping("uniform", student, teacher)
    assert mapping[-1] == (student, teacher)
    assert all(1 <= pair.teacher <= teacher for pair in mapping)
    assert [p.teacher for p in mapping] == sorted(p.teacher for p in mapping)


def test_description_names_the_student_layer_first():
    assert describe_layer_mapping(resolve_layer_mapping("uniform", 2, 12)) == "1<-6 2<-12"


@pytest.mark.parametrize(
    ("mapping", "student", "teacher", "message"),
    [
        ("unifrom", 3, 12, "did you mean 'uniform'"),
        ("last", 13, 12, "no deeper than its teacher"),
        ("1:13", 3, 12, "teacher layer 13, but the teacher has layers 1 to 12"),
        ("4:12", 3, 12, "student layer 4, but the student has layers 1 to 3"),
        ("0:1", 3, 12, "student layer 0"),
        ("1:a", 3, 12, "'1:a' is not of the form"),
        ([], 3, 12, "names no pair"),
    ],
)
def test_impossible_mappings_are_refused(mapping, student, teacher, message):
    with pytest.raises(ValueError, match=message):
        resolve_layer_mapping(mapping, student, teacher)
