"""Controllers that propose what people choose without a search: depths of the teacher's shape, or shapes by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import optuna

from ...utils.choices import nearest
from ..architecture import field_of
from ..space import Architecture, SearchSpace, read_yaml
from .base import ArchitectureSampler


class ListSampler(ArchitectureSampler):
    """Proposes architectures in the order in which they are given, and then no more; ValueError if there are none."""

    def __init__(self, space: SearchSpace, candidates_per_episode: int, architectures: Sequence[Architecture]) -> None:
        super().__init__(space, candidates_per_episode)
        if not architectures:
            raise ValueError(
                "there is nothing to propose: name architectures, or a space that has the teacher's shape."
            )
        self.architectures = list(dict.fromkeys(architectures))

    def available(
        self, study: optuna.Study, number: int, leaders: Sequence[Architecture] = ()
    ) -> Sequence[Architecture]:
        """Those of the list that are left."""
        return self.allowed(self.architectures, self.taken(study, number))

    def choose(self, study: optuna.Study, number: int, available: Sequence[Architecture]) -> Architecture:
        """Choose the first."""
        return available[0]


def depth_rule(space: SearchSpace, teacher: Architecture) -> list[Architecture]:
    """The rule of thumb "the teacher's shape with fewer layers": a member for each depth, the deepest first.

    Each has the teacher's hidden size, heads, intermediate size and activation, or the nearest that the space has, by
    ratio. Layers that are kept are `evenly_spaced`, or the nearest that the space has.
    """
    able = [size for size in space.hidden_size if any(size % heads == 0 for heads in space.num_attention_heads)]
    width = _nearest(able, teacher.hidden_size)
    activation = teacher.per_layer("hidden_act")[0]
    narrower = [size for size in space.embedding_size if size is not None and size <= width]
    shape = {
        "hidden_size": width,
        "embedding_size": None if None in space.embedding_size or not narrower else max(narrower),
        "num_attention_heads": teacher.per_layer("num_attention_heads")[0],
        "intermediate_size": _nearest(space.intermediate_size, teacher.per_layer("intermediate_size")[0]),
        "hidden_act": activation if activation in space.hidden_act else space.hidden_act[0],
    }
    found = []
    for depth in sorted(space.num_hidden_layers, reverse=True):
        values = shape | {"num_hidden_layers": depth, "teacher_layers": evenly_spaced(depth, teacher.num_hidden_layers)}
        params = {}
        for name in space.choices:
            field, layer = field_of(name)
            value = values[field]
            params[name] = value[min(layer or depth, depth) - 1] if isinstance(value, tuple) else value
        found.append(space.decode(params))
    return [architecture for architecture in found if architecture in space]


def _nearest(values: Sequence[int], wanted: int) -> int:
    return min(values, key=lambda value: abs(math.log(value / wanted)))


def evenly_spaced(depth: int, teacher_layers: int) -> tuple[int, ...]:
    """Layers, from 1, of even spacing that ends with the teacher's last: 4, 8 and 12 of 12 for a student of three."""
    return tuple(round(layer * teacher_layers / depth) for layer in range(1, depth + 1))


def load_hand_list(path: str | Path, space: SearchSpace) -> list[Architecture]:
    """Read architectures from a YAML list of mappings, whose keys are the fields of `Architecture`.

    Raises:
        ValueError: If it is no such list, is empty, or names what is no architecture of the space.
    """
    entries, known = read_yaml(Path(path)), [field.name for field in fields(Architecture)]
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} must be a list of architectures, one or more, as '- {{num_hidden_layers: 2, ...}}'.")
    found = []
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, entry {number} ({entry})"
        if not isinstance(entry, dict):
            raise ValueError(f"{where} must map fields of an architecture to values; known: {', '.join(known)}.")
        for name in entry:
            if name not in known:
                raise ValueError(
                    f"{where} has an unknown key {name!r}{nearest(name, known)} Known: {', '.join(known)}."
                )
        try:
            found.append(Architecture(**entry))
            inside = found[-1] in space
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} is no architecture: {error}") from error
        if not inside:
            raise ValueError(f"{where} is not in the search space; change it, or add its choices to the space.")
    return found
