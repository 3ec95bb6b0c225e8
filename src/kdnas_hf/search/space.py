"""The search space: which shapes a student may have, and which of its teacher's layers it may keep."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from transformers.activations import ACT2FN

from ..students.architecture import CHOICES, PER_LAYER_FIELDS, Architecture, count_encoder_parameters, field_of
from ..utils.choices import nearest
from ..utils.yaml_files import read_yaml

PRESETS_FOLDER = Path(__file__).parent / "presets"
MAX_ENUMERATED = 100_000
# what is looked at in a space of more
POOL_SIZE = 2000
NEIGHBOURS = 50  # of each leader


@dataclass(frozen=True)
class SearchSpace:
    """All combinations of choices whose heads divide the hidden size and that keep within the bounds.

    A space of more than 100,000 members is never enumerated: they are counted, drawn and recognised.

    Args:
        num_hidden_layers: Choices.
        num_attention_heads: Choices.
        hidden_size: Choices.
        intermediate_size: Choices.
        hidden_act: Choices, names of transformers' activations.
        min_encoder_parameters: Fewest parameters of all layers together, embeddings not counted.
        max_encoder_parameters: Most parameters of all layers together, embeddings not counted.
        embedding_size: Choices, widths of the word embeddings, up to the hidden size; None is the hidden size.
        per_layer: Whether each layer has heads, intermediate size and activation of its own.
        teacher_layers: The teacher's layers, from 1, that may be kept: a student's start as copies of as many of them.

    Raises:
        ValueError: If a choice is impossible or no architecture is left.
    """

    num_hidden_layers: tuple[int, ...]
    num_attention_heads: tuple[int, ...]
    hidden_size: tuple[int, ...]
    intermediate_size: tuple[int, ...]
    hidden_act: tuple[str, ...] = ("gelu",)
    min_encoder_parameters: int | None = None
    max_encoder_parameters: int | None = None
    embedding_size: tuple[int | None, ...] = (None,)
    per_layer: bool = False
    teacher_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in [*CHOICES, "embedding_size"] + ["teacher_layers"] * (self.teacher_layers is not None):
            values = getattr(self, name)
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise ValueError(f"{name}={values!r} must be a list of choices; write [{values}].")
            if not values:
                raise ValueError(f"{name} has no choices; name at least one.")
            for value in values:
                _check_choice(name, value)
            object.__setattr__(self, name, tuple(dict.fromkeys(values)))  # equal choices count once
        for name in ("min_encoder_parameters", "max_encoder_parameters"):
            bound = getattr(self, name)
            if bound is not None and (not isinstance(bound, int) or bound < 1):
                raise ValueError(f"{name}={bound!r} must be a positive integer, or be left out.")
        if not isinstance(self.per_layer, bool):
            raise ValueError(f"per_layer={self.per_layer!r} must be true or false.")
        kept, deepest = self.teacher_layers, max(self.num_hidden_layers)
        if kept is not None and len(kept) < deepest:
            raise ValueError(f"teacher_layers={list(kept)} are too few for num_hidden_layers={deepest}; name as many.")
        if not self._families:
            raise ValueError(f"the search space is empty: {_why_empty(self)}")

    # ---- members ----

    def _heads(self, hidden_size: int) -> tuple[int, ...]:
        return tuple(heads for heads in self.num_attention_heads if hidden_size % heads == 0)

    def _embedding_sizes(self, hidden_size: int) -> tuple[int | None, ...]:
        able = (size for size in self.embedding_size if size is None or size <= hidden_size)
        return tuple(dict.fromkeys(None if size == hidden_size else size for size in able))

    def _free_layers(self, depth: int) -> int:
        return depth if self.per_layer else 1

    @cached_property
    def _ways(self) -> list[Counter[int]]:
        """At index n: the sums of n intermediate sizes, and how many combinations have each."""
        counts = [Counter({0: 1})]
        for _ in range(self._free_layers(max(self.num_hidden_layers))):
            counts.append(Counter())
            for (total, ways), inner in itertools.product(counts[-2].items(), self.intermediate_size):
                counts[-1][total + inner] += ways
        return counts

    @cached_property
    def _families(self) -> dict[tuple[int, int, int | None], dict[int, int]]:
        """By depth, hidden and embedding size: neurons of all layers within the bounds, and how many combinations."""
        found: dict[tuple[int, int, int | None], dict[int, int]] = {}
        low, high = self.min_encoder_parameters or 0, self.max_encoder_parameters or math.inf
        for depth, hidden in itertools.product(self.num_hidden_layers, self.hidden_size):
            free = self._free_layers(depth)
            counts = {total * depth // free: ways for total, ways in self._ways[free].items()}
            sizes = {n: count_encoder_parameters(depth, hidden, n) for n in counts}
            neurons = {n: ways for n, ways in counts.items() if low <= sizes[n] <= high}
            if neurons and self._heads(hidden):
                found |= {(depth, hidden, size): neurons for size in self._embedding_sizes(hidden)}
        return found

    @cached_property
    def size(self) -> int:
        """Number of members. `len` is the same, but refuses numbers of more than 63 bits."""
        count = 0
        for (depth, hidden, _), neurons in self._families.items():
            free = (len(self._heads(hidden)) * len(self.hidden_act)) ** self._free_layers(depth)
            kept = 1 if self.teacher_layers is None else math.comb(len(self.teacher_layers), depth)
            count += sum(neurons.values()) * free * kept
        return count

    def __len__(self) -> int:
        return self.size

    @property
    def parameter_range(self) -> tuple[int, int]:
        """Fewest and most encoder parameters of a member."""
        families = self._families.items()
        counts = [count_encoder_parameters(*key[:2], n) for key, neurons in families for n in neurons]
        return min(counts), max(counts)

    def __contains__(self, architecture: object) -> bool:
        if not isinstance(architecture, Architecture):
            return False
        shape, params = architecture, self.encode(architecture)
        neurons = self._families.get((shape.num_hidden_layers, shape.hidden_size, shape.embedding_size), {})
        return (
            sum(shape.per_layer("intermediate_size")) in neurons
            and all(params[name] in values for name, values in self.choices.items())
            and self.decode(params) == shape
        )

    @property
    def is_enumerable(self) -> bool:
        """Whether there are so few members that each can be looked at."""
        return self.size <= MAX_ENUMERATED

    @cached_property
    def architectures(self) -> tuple[Architecture, ...]:
        """Every architecture of the space, in a fixed order; ValueError if there are too many."""
        if not self.is_enumerable:
            raise ValueError(
                f"the search space has {self.size:,} architectures, too many to go through (at most "
                f"{MAX_ENUMERATED:,}); draw from it with sample(), or narrow it."
            )
        return tuple(self._members())

    def _members(self) -> Iterator[Architecture]:
        for (depth, hidden, embedding), neurons in self._families.items():
            choices = (self.intermediate_size, self._heads(hidden), self.hidden_act)
            layers: list[Any] = [itertools.product(values, repeat=self._free_layers(depth)) for values in choices]
            kept: Any = itertools.combinations(sorted(self.teacher_layers), depth) if self.teacher_layers else [None]
            for inner, heads, activations, copied in itertools.product(*layers, kept):
                if sum(inner) * depth // len(inner) in neurons:
                    yield Architecture(depth, heads, hidden, inner, activations, embedding, copied)

    def __iter__(self) -> Iterator[Architecture]:
        return iter(self.architectures)

    def sample(self, random: Random, count: int) -> list[Architecture]:
        """Draw distinct members, fewer than ``count`` where the space has fewer.

        All are equally likely where they can be gone through and no layer has a choice of its own. Elsewhere nearly
        all would be as deep as they can be, and of medium size: there all depths, hidden and embedding sizes are
        equally likely, and for each of them all numbers of neurons.
        """
        alike = not self.per_layer and self.teacher_layers is None
        if self.is_enumerable and (alike or 10 * count > self.size):
            return random.sample(self.architectures, min(count, self.size))
        found: dict[Architecture, None] = {}
        while len(found) < min(count, self.size):
            found[self._draw(random)] = None
        return list(found)

    def _draw(self, random: Random) -> Architecture:
        (depth, hidden, embedding), neurons = random.choice(list(self._families.items()))
        layers = self._free_layers(depth)
        total, inner = random.choice(list(neurons)) * layers // depth, list[int]()
        for left in reversed(range(layers)):  # all combinations of this sum are equally likely
            ways = [self._ways[left][total - sum(inner) - one] for one in self.intermediate_size]
            inner += random.choices(self.intermediate_size, ways)
        heads = random.choices(self._heads(hidden), k=layers)
        activations = random.choices(self.hidden_act, k=layers)
        kept = None if self.teacher_layers is None else tuple(sorted(random.sample(self.teacher_layers, depth)))
        return Architecture(depth, tuple(heads), hidden, tuple(inner), tuple(activations), embedding, kept)

    def neighbours(self, architecture: Architecture, random: Random, count: int) -> list[Architecture]:
        """Draw distinct members that differ from a member in one choice; at most ``count``.

        With another depth the first layers stay as they are, and layers that are added are like the last one. With
        another hidden size, heads that do not divide it become the nearest that do. A layer of the teacher gives way
        to one of the two nearest that are not kept.
        """
        params, depth = self.encode(architecture), architecture.num_hidden_layers
        able = [name for name, values in self.choices.items() if len(values) > 1 and (field_of(name)[1] or 0) <= depth]
        found: dict[Architecture, None] = {}
        for _ in range(4 * count if able else 0):
            name = random.choice(able)
            others = [value for value in self.choices[name] if value != params[name]]
            if field_of(name)[0] == "teacher_layers":
                unused = set(others).difference(architecture.teacher_layers or ())
                others = sorted(unused, key=lambda layer: (abs(layer - params[name]), layer))[:2]
            neighbour = self.decode(params | {name: random.choice(others)}) if others else architecture
            if neighbour in self and neighbour != architecture:
                found[neighbour] = None
            if len(found) == count:
                break
        return list(found)

    def pool(self, random: Random, leaders: Sequence[Architecture] = ()) -> Sequence[Architecture]:
        """All members, or of a space that has too many a sample, and neighbours of some that lead."""
        if self.is_enumerable:
            return self.architectures
        drawn = self.sample(random, POOL_SIZE)
        around = (self.neighbours(leader, random, NEIGHBOURS) for leader in leaders)
        return list(dict.fromkeys(itertools.chain(drawn, *around)))

    # ---- choices ----

    @cached_property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """What a controller chooses, by parameter of a trial (`field_of`): by layer, for as many as the deepest has."""
        layers = [f"_{layer}" for layer in range(1, max(self.num_hidden_layers) + 1)]
        names = ["num_hidden_layers", "hidden_size"] + ["embedding_size"] * (self.embedding_size != (None,))
        found = {name: getattr(self, name) for name in names}
        for name in PER_LAYER_FIELDS:
            values = getattr(self, name)
            found |= {name + layer: values for layer in (layers if self.per_layer and len(values) > 1 else [""])}
        kept = {f"teacher_layer{layer}": self.teacher_layers for layer in layers if self.teacher_layers}
        return kept | found  # a trial that has not all of them is no architecture yet: the last are never left out

    def encode(self, architecture: Architecture) -> dict[str, Any]:
        """An architecture as parameters of a trial; `decode` is the inverse.

        Every trial has all parameters: those of layers that an architecture does not have repeat its last layer.
        """
        params = {name: architecture.chosen(name) for name in self.choices}
        if params.get("embedding_size", 0) is None and None not in self.embedding_size:
            params["embedding_size"] = architecture.hidden_size
        return params

    def decode(self, params: Mapping[str, Any]) -> Architecture:
        """The architecture that parameters name, or come nearest to.

        Heads that do not divide the hidden size become the nearest that do, by ratio; kept layers are sorted, and one
        that is named twice becomes the nearest that is not kept.
        """
        params = dict(params)
        if heads := self._heads(params["hidden_size"]):
            for name in [name for name in params if name.startswith("num_attention_heads")]:
                params[name] = min(heads, key=lambda able: abs(math.log(able / params[name])))
        if self.teacher_layers is not None:
            names = [f"teacher_layer_{layer}" for layer in range(1, params["num_hidden_layers"] + 1)]
            kept: list[int] = []
            for wanted in sorted(params[name] for name in names):
                unused = set(self.teacher_layers).difference(kept)
                kept.append(min(unused, key=lambda layer: (abs(layer - wanted), layer)))
            params.update(zip(names, sorted(kept), strict=True))
        return Architecture.from_params(params)

    def as_dict(self) -> dict[str, Any]:
        """The space as it is written in YAML: choices, and what else is not as by default."""
        values = {one.name: (getattr(self, one.name), one.default) for one in fields(self)}
        given = {name: value for name, (value, default) in values.items() if name in CHOICES or value != default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "the search space") -> SearchSpace:
        """Make a space from a mapping; ValueError if a name is unknown or missing, or the space is impossible."""
        known = [field.name for field in fields(cls)]
        for name in sorted(values.keys() - set(known)):
            raise ValueError(f"{source} has an unknown key {name!r}{nearest(name, known)} Known: {', '.join(known)}.")
        missing = [name for name in CHOICES if name not in values and name != "hidden_act"]
        if missing:
            raise ValueError(f"{source} has no choices for {', '.join(missing)}.")
        return cls(**values)

    @classmethod
    def load(cls, name_or_path: str) -> SearchSpace:
        """Load a preset by name, or a YAML file; ValueError if there is neither, or the space is impossible."""
        path = Path(name_or_path)
        if path.suffix not in (".yaml", ".yml"):
            path = PRESETS_FOLDER / f"{name_or_path}.yaml"
        if not path.is_file():
            presets = ", ".join(sorted(preset.stem for preset in PRESETS_FOLDER.glob("*.yaml")))
            raise ValueError(f"space={name_or_path!r} is neither a preset ({presets}) nor a YAML file that exists.")
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise ValueError(f"{path} must map choices to lists, as 'hidden_size: [192, 288]'.")
        return cls.from_dict(values, source=str(path))


def _check_choice(name: str, value: object) -> None:
    if name == "hidden_act":
        if value not in ACT2FN:
            hint = nearest(value, ACT2FN)
            raise ValueError(f"hidden_act has the choice {value!r}, which transformers does not know{hint}")
    elif (type(value) is not int or value < 1) and not (value is None and name == "embedding_size"):
        allowed = "positive integers" + (", or null" if name == "embedding_size" else "")
        raise ValueError(f"{name} has the choice {value!r}; choices are {allowed}.")


def _why_empty(space: SearchSpace) -> str:
    able = [hidden for hidden in space.hidden_size if space._heads(hidden)]
    widths = f"hidden_size of {list(space.hidden_size)}"
    if not able:
        return f"no num_attention_heads of {list(space.num_attention_heads)} divides a {widths}; add heads that do."
    if not any(space._embedding_sizes(hidden) for hidden in able):
        sizes = list(space.embedding_size)
        return f"every embedding_size of {sizes} is larger than each {widths} that the heads divide; add null."
    low, high = replace(space, min_encoder_parameters=None, max_encoder_parameters=None).parameter_range
    least, most = space.min_encoder_parameters or 0, space.max_encoder_parameters or math.inf
    return (
        f"its architectures have {low:,} to {high:,} encoder parameters, the bounds ask for {least:,} to {most:,}; "
        "widen min_encoder_parameters or max_encoder_parameters."
    )
