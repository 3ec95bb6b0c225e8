"""Rules of thumb and random shapes at a given latency."""

import numpy as np
import pytest

from kdnas_hf import Architecture, SearchSpace
from kdnas_hf.search.rules import TOLERANCE, random_architectures, rules_of_thumb

TEACHER = Architecture(12, 12, 384, 1536)
SPACE = SearchSpace.load("small")


def work(architectures):
    """A latency that is proportional to the parameters of the layers, the teacher's being 1."""
    return np.array([one.encoder_parameters / TEACHER.encoder_parameters for one in architectures])


@pytest.mark.parametrize("speedup", [4.0, 7.0, 10.0])
def test_rules_fill_the_latency_and_exceed_it_by_less_than_counts_as_equal(speedup):
    most = (1 + TOLERANCE / 2) / speedup
    rules = rules_of_thumb(SPACE, TEACHER, work, 1 / speedup, count=5)
    assert rules
    latencies = work(list(rules.values()))
    assert (latencies <= most).all()
    for one in rules.values():
        if one.hidden_size == TEACHER.hidden_size and one.intermediate_size < TEACHER.intermediate_size:
            larger = Architecture(one.num_hidden_layers, 12, 384, one.intermediate_size + 64)
            assert work([larger])[0] > most  # the largest feed-forward block that fits


def test_the_first_rule_keeps_the_teachers_width_and_as_many_layers_as_fit():
    name, first = next(iter(rules_of_thumb(SPACE, TEACHER, work, 1 / 7, count=1).items()))
    assert (first.hidden_size, first.num_attention_heads, first.hidden_act) == (384, 12, "gelu")
    deeper = Architecture(first.num_hidden_layers + 1, 12, 384, 384)
    assert work([deeper])[0] > 1 / 7
    assert str(first.num_hidden_layers) in name


def test_where_layers_are_chosen_rules_keep_them_as_is_usual_and_as_by_default():
    rules = rules_of_thumb(SearchSpace.load("layers"), TEACHER, work, 1 / 5, count=8)
    kept = {(one.num_hidden_layers, one.teacher_layers) for one in rules.values() if one.hidden_size == 384}
    assert {(2, (6, 12)), (2, None)} <= kept
    assert len(set(rules.values())) == len(rules)
    assert all(one.teacher_layers is None for one in rules.values() if one.hidden_size != 384)


def test_random_shapes_are_as_fast_and_never_what_is_compared_with_them():
    level = float(work([Architecture(2, 12, 384, 1024)])[0])
    without = random_architectures(SPACE, work, level, 2, seed=1)
    drawn = random_architectures(SPACE, work, level, 5, seed=1, without=without)
    assert len(drawn) == 5
    assert not set(drawn) & set(without)
    assert all(one in SPACE for one in drawn)
    assert (np.abs(work(drawn) / level - 1) <= TOLERANCE).all()
    assert drawn == random_architectures(SPACE, work, level, 5, seed=1, without=without)


def test_where_too_few_are_as_fast_the_nearest_are_drawn():
    few = SearchSpace.from_dict(
        {"num_hidden_layers": [1, 2, 3], "num_attention_heads": [2], "hidden_size": [8], "intermediate_size": [16]}
    )
    level = float(work([Architecture(2, 2, 8, 16)])[0])
    drawn = random_architectures(few, work, level, 2, seed=0)
    assert drawn[0].num_hidden_layers == 2
    assert len(drawn) == 2
