"""Controllers that propose what people choose without a search: depths of the teacher's shape, or shapes by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path

import optuna

from ...students import Architecture
from ...students.starts import default_layers
from ...utils.yaml_files import read_yaml
from ..space import SearchSpace
from .base import ArchitectureSampler, Observation


class ListSampler(ArchitectureSampler):
    """Proposes architectures in the order in which they are given, and then no more; ValueError if there are none."""

    def __init__(self, space: SearchSpace, candidates_per_episode: int, architectures: Iterable[Architecture]) -> None:
        super().__init__(space, candidates_per_episode)
        self.architectures = list(dict.fromkeys(architectures))
        if not self.architectures:
            raise ValueError("there is nothing to propose: give architectures (hand), or the teacher's shape (depth).")

    def available(self, study: optuna.Study, number: int, around: Iterable[Observation] = ()) -> list[Architecture]:
        """Those that are left."""
        return self.allowed(study, number, self.architectures)

    def choose(self, study: optuna.Study, number: int, available: Sequence[Architecture]) -> Architecture:
        """Choose the first."""
        return available[0]


def depth_rule(space: SearchSpace, teacher: Architecture) -> list[Architecture]:
    """The rule of thumb "the teacher's shape with fewer layers": a member for each depth, the deepest first.

    Each has the teacher's hidden size, heads, intermediate size and activation, or the nearest that the space has, by
    ratio. Layers that are kept are `evenly_spaced`, or the nearest that the space has.
    """
    inner, depths = teacher.per_layer("intermediate_size")[0], sorted(space.num_hidden_layers, reverse=True)
    return [one for depth in depths if (one := _shallower(space, teacher, evenly_spaced, depth, inner)) in space]


def usual_shapes(space: SearchSpace, teacher: Architecture) -> list[Architecture]:
    """Members that an engineer would try first, by falling depth and then intermediate size, at least the hidden size.

    All have the teacher's hidden size, heads and activation, or the nearest that the space has, and keep the layers
    that a student keeps by default.
    """
    pairs = sorted(itertools.product(space.num_hidden_layers, space.intermediate_size), reverse=True)
    shapes = [_shallower(space, teacher, default_layers, *pair) for pair in pairs]
    return [one for one in shapes if one in space and max(one.per_layer("intermediate_size")) >= one.hidden_size]


def _shallower(
    space: SearchSpace, teacher: Architecture, keep: Callable[[int, int], Sequence[int]], depth: int, inner: int
) -> Architecture:
    """The shape of the space that is nearest to the teacher's with fewer layers and such feed-forward blocks."""
    able = [size for size in space.hidden_size if any(size % heads == 0 for heads in space.num_attention_heads)]
    width, heads = _nearest(able, teacher.hidden_size), teacher.per_layer("num_attention_heads")[0]
    wanted = teacher.per_layer("hidden_act")[0]
    activation = wanted if wanted in space.hidden_act else space.hidden_act[0]
    sizes = [size for size in space.embedding_size if size is not None and size <= width]
    embedding = None if None in space.embedding_size else max(sizes, default=None)
    kept = tuple(keep(depth, teacher.num_hidden_layers)) if space.teacher_layers else None
    neurons = _nearest(space.intermediate_size, inner)
    return space.decode(space.encode(Architecture(depth, heads, width, neurons, activation, embedding, kept)))


def _nearest(values: Sequence[int], wanted: int) -> int:
    return min(values, key=lambda value: abs(math.log(value / wanted)))


def evenly_spaced(depth: int, teacher_layers: int) -> tuple[int, ...]:
    """Layers, from 1, of even spacing that ends with the teacher's last: 4, 8 and 12 of 12 for a student of three."""
    return tuple(round(layer * teacher_layers / depth) for layer in range(1, depth + 1))


def load_hand_list(path: str | Path, space: SearchSpace) -> list[Architecture]:
    """Read a YAML list of mappings of `Architecture`'s fields; ValueError if one is no architecture of the space."""
    entries, known = read_yaml(Path(path)), ", ".join(field.name for field in fields(Architecture))
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} must be a list of one or more architectures, mappings of {known}.")
    found = []
    for number, entry in enumerate(entries, start=1):
        try:
            found.append(Architecture(**entry))
            if found[-1] not in space:
                raise ValueError("it is not in the search space.")
        except (TypeError, ValueError) as error:
            reason = str(error).rpartition("__init__() ")[2].rstrip(".")
            raise ValueError(f"{path}, entry {number} ({entry}): {reason}; it has the fields {known}.") from error
    return found
