"""The search space: which shapes a student may have."""

from __future__ import annotations

import difflib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import yaml
from transformers.activations import ACT2FN

from .architecture import CHOICES, PER_LAYER_FIELDS, Architecture, count_encoder_parameters

__all__ = ["CHOICES", "PRESETS_FOLDER", "Architecture", "Choice", "SearchSpace"]

PRESETS_FOLDER = Path(__file__).parent / "presets"
BOUNDS = ("min_encoder_parameters", "max_encoder_parameters")
MAX_ENUMERATED = 100_000
# what is looked at in a space of more
POOL_SIZE = 2000
NEIGHBOURS = 50  # of each leader


class Choice(NamedTuple):
    """One choice that a space leaves open.

    Attributes:
        field: The field of `Architecture`.
        values: What may be chosen.
        layer: The layer that it is for, counted from 1; None where it is for all.
    """

    field: str
    values: tuple[Any, ...]
    layer: int | None = None

    @property
    def name(self) -> str:
        """Its name in a trial's parameters."""
        return self.field if self.layer is None else f"{self.field}_{self.layer}"

    def is_absent(self, architecture: Architecture) -> bool:
        """Whether it is for a layer that an architecture does not have."""
        return self.layer is not None and self.layer > architecture.num_hidden_layers

    def of(self, architecture: Architecture) -> Any:
        """What an architecture has chosen; for a layer that it does not have, what its last layer has."""
        if self.layer is None:
            return getattr(architecture, self.field)
        return architecture.per_layer(self.field)[: self.layer][-1]


class _Family(NamedTuple):
    """The members of a space that have the same depth and sizes.

    Attributes:
        num_hidden_layers: Their layers.
        hidden_size: Their hidden size.
        embedding_size: Their embedding size.
        heads: The heads that divide the hidden size.
        neurons: Neurons of all feed-forward blocks together that keep within the bounds, and how many combinations
            of intermediate sizes have as many.
    """

    num_hidden_layers: int
    hidden_size: int
    embedding_size: int | None
    heads: tuple[int, ...]
    neurons: dict[int, int]


@dataclass(frozen=True)
class SearchSpace:
    """All combinations of choices whose heads divide the hidden size and that keep within the bounds.

    A space whose layers may differ has easily millions of members. They are never enumerated: they are counted, drawn
    and recognised.

    Args:
        num_hidden_layers: Choices.
        num_attention_heads: Choices.
        hidden_size: Choices.
        intermediate_size: Choices.
        hidden_act: Choices, names of transformers' activations.
        min_encoder_parameters: Fewest parameters of all layers together, embeddings not counted.
        max_encoder_parameters: Most parameters of all layers together, embeddings not counted.
        embedding_size: Choices, widths of the word embeddings; None is the hidden size. Those that are larger than an
            architecture's hidden size are none of its choices.
        per_layer: Whether each layer has heads, intermediate size and activation of its own.

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

    def __post_init__(self) -> None:
        for name in (*CHOICES, "embedding_size"):
            values = getattr(self, name)
            if isinstance(values, str | int) or not isinstance(values, Sequence):
                raise ValueError(f"{name}={values!r} must be a list of choices; write [{values}].")
            if not values:
                raise ValueError(f"{name} has no choices; name at least one.")
            object.__setattr__(self, name, tuple(dict.fromkeys(values)))  # equal choices count once
        for name in (*CHOICES[:-1], "embedding_size"):
            for value in getattr(self, name):
                if value is None and name == "embedding_size":
                    continue
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    allowed = "positive integers, or null" if name == "embedding_size" else "positive integers"
                    raise ValueError(f"{name} has the choice {value!r}; choices are {allowed}.")
        for value in self.hidden_act:
            if value not in ACT2FN:
                nearest = difflib.get_close_matches(str(value), ACT2FN, n=1)
                hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
                raise ValueError(f"hidden_act has the choice {value!r}, which transformers does not know.{hint}")
        for name in BOUNDS:
            bound = getattr(self, name)
            if bound is not None and (not isinstance(bound, int) or bound < 1):
                raise ValueError(f"{name}={bound!r} must be a positive integer, or be left out.")
        if not isinstance(self.per_layer, bool):
            raise ValueError(f"per_layer={self.per_layer!r} must be true or false.")
        self._refuse_if_empty()

    def _refuse_if_empty(self) -> None:
        if not any(self._heads(hidden) for hidden in self.hidden_size):
            raise ValueError(
                f"the search space is empty: no num_attention_heads of {list(self.num_attention_heads)} divides a "
                f"hidden_size of {list(self.hidden_size)}; add heads that do."
            )
        if not any(self._embedding_sizes(hidden) for hidden in self.hidden_size if self._heads(hidden)):
            raise ValueError(
                f"the search space is empty: every embedding_size of {list(self.embedding_size)} is larger than each "
                f"hidden_size of {list(self.hidden_size)} that the heads divide; add a smaller one, or null."
            )
        if not self._families:
            low, high = replace(self, min_encoder_parameters=None, max_encoder_parameters=None).parameter_range
            raise ValueError(
                f"the search space is empty: its architectures have {low:,} to {high:,} encoder "
                f"parameters, the bounds ask for {self.min_encoder_parameters or 0:,} to "
                f"{self.max_encoder_parameters or math.inf:,}; widen min_encoder_parameters or max_encoder_parameters."
            )

    # ---- members ----

    def _heads(self, hidden_size: int) -> tuple[int, ...]:
        return tuple(heads for heads in self.num_attention_heads if hidden_size % heads == 0)

    def _embedding_sizes(self, hidden_size: int) -> tuple[int | None, ...]:
        able = (size for size in self.embedding_size if size is None or size <= hidden_size)
        return tuple(dict.fromkeys(None if size == hidden_size else size for size in able))

    def _within_bounds(self, encoder_parameters: int) -> bool:
        return (self.min_encoder_parameters or 0) <= encoder_parameters <= (self.max_encoder_parameters or math.inf)

    @cached_property
    def _neurons(self) -> list[Counter[int]]:
        """At the index of a depth: neurons of all layers together, and how many combinations have as many."""
        counts = [Counter({0: 1})]
        for depth in range(1, max(self.num_hidden_layers) + 1):
            if not self.per_layer:
                counts.append(Counter({depth * inner: 1 for inner in self.intermediate_size}))
                continue
            counts.append(Counter())
            for neurons, ways in counts[-2].items():
                for inner in self.intermediate_size:
                    counts[-1][neurons + inner] += ways
        return counts

    @cached_property
    def _families(self) -> list[_Family]:
        found = []
        for depth, hidden in itertools.product(self.num_hidden_layers, self.hidden_size):
            neurons = {
                count: ways
                for count, ways in self._neurons[depth].items()
                if self._within_bounds(count_encoder_parameters(depth, hidden, count))
            }
            heads = self._heads(hidden)
            if neurons and heads:
                found += [_Family(depth, hidden, size, heads, neurons) for size in self._embedding_sizes(hidden)]
        return found

    @cached_property
    def size(self) -> int:
        """Number of members. `len` is the same, but refuses numbers of more than 63 bits."""
        total = 0
        for family in self._families:
            free = len(family.heads) * len(self.hidden_act)
            total += sum(family.neurons.values()) * free ** (family.num_hidden_layers if self.per_layer else 1)
        return total

    def __len__(self) -> int:
        return self.size

    @property
    def parameter_range(self) -> tuple[int, int]:
        """Fewest and most encoder parameters of a member."""
        counts = [
            count_encoder_parameters(family.num_hidden_layers, family.hidden_size, neurons)
            for family in self._families
            for neurons in (min(family.neurons), max(family.neurons))
        ]
        return min(counts), max(counts)

    def __contains__(self, architecture: object) -> bool:
        return (
            isinstance(architecture, Architecture)
            and (self.per_layer or architecture.is_homogeneous)
            and architecture.num_hidden_layers in self.num_hidden_layers
            and architecture.hidden_size in self.hidden_size
            and architecture.embedding_size in self._embedding_sizes(architecture.hidden_size)
            and all(
                value in getattr(self, name) for name in PER_LAYER_FIELDS for value in set(architecture.per_layer(name))
            )
            and all(architecture.hidden_size % heads == 0 for heads in architecture.per_layer("num_attention_heads"))
            and self._within_bounds(architecture.encoder_parameters)
        )

    @property
    def is_enumerable(self) -> bool:
        """Whether there are so few members that each can be looked at."""
        return self.size <= MAX_ENUMERATED

    @cached_property
    def architectures(self) -> tuple[Architecture, ...]:
        """Every architecture of the space, in a fixed order.

        Raises:
            ValueError: If there are too many.
        """
        if not self.is_enumerable:
            raise ValueError(
                f"the search space has {self.size:,} architectures, too many to go through (at most "
                f"{MAX_ENUMERATED:,}); draw from it with sample(), or narrow it."
            )
        return tuple(dict.fromkeys(architecture for architecture in self._combinations() if architecture in self))

    def _combinations(self) -> Iterator[Architecture]:
        for depth in self.num_hidden_layers:
            for heads, hidden in itertools.product(self._layers(self.num_attention_heads, depth), self.hidden_size):
                if any(hidden % count for count in heads):
                    continue
                rest = (self._layers(self.intermediate_size, depth), self._layers(self.hidden_act, depth))
                for inner, activations, embedding in itertools.product(*rest, self._embedding_sizes(hidden)):
                    yield Architecture(depth, heads, hidden, inner, activations, embedding)

    def _layers(self, values: Sequence[Any], depth: int) -> Iterable[tuple[Any, ...]]:
        return itertools.product(values, repeat=depth) if self.per_layer else ((value,) * depth for value in values)

    def __iter__(self) -> Iterator[Architecture]:
        return iter(self.architectures)

    def sample(self, random: Random, count: int) -> list[Architecture]:
        """Draw distinct members, fewer than ``count`` where the space has fewer.

        Of a space whose layers are alike all members are equally likely. Nearly all members of any other are as deep as
        they can be, and of medium size: of it all combinations of depth, hidden size and embedding size are equally
        likely, and in each of them all sizes.
        """
        if self.is_enumerable and (not self.per_layer or 10 * count > self.size):
            return random.sample(self.architectures, min(count, self.size))
        found: dict[Architecture, None] = {}
        while len(found) < min(count, self.size):
            found[self._draw(random)] = None
        return list(found)

    def _draw(self, random: Random) -> Architecture:
        weights = None if self.per_layer else [len(one.heads) * len(one.neurons) for one in self._families]
        (family,) = random.choices(self._families, weights)
        depth = family.num_hidden_layers
        neurons = random.choice(list(family.neurons))
        if not self.per_layer:
            heads, activation = random.choice(family.heads), random.choice(self.hidden_act)
            return Architecture(depth, heads, family.hidden_size, neurons // depth, activation, family.embedding_size)
        inner = []
        for left in reversed(range(depth)):  # combinations of the layers that are left are equally likely
            ways = [self._neurons[left][neurons - choice] for choice in self.intermediate_size]
            inner.append(random.choices(self.intermediate_size, ways)[0])
            neurons -= inner[-1]
        return Architecture(
            depth,
            tuple(random.choices(family.heads, k=depth)),
            family.hidden_size,
            tuple(inner),
            tuple(random.choices(self.hidden_act, k=depth)),
            family.embedding_size,
        )

    def neighbours(self, architecture: Architecture, random: Random, count: int) -> list[Architecture]:
        """Draw distinct members that differ from a member in one choice; at most ``count``.

        With another depth the first layers stay as they are, and layers that are added are like the last one. With
        another hidden size, heads that do not divide it become the nearest that do.
        """
        params = self.encode(architecture)
        able = [one for one in self.open_choices if len(one.values) > 1 and not one.is_absent(architecture)]
        found: dict[Architecture, None] = {}
        for _ in range(4 * count if able else 0):
            choice = random.choice(able)
            value = random.choice([value for value in choice.values if value != params[choice.name]])
            neighbour = self.with_dividing_heads(Architecture.from_params(params | {choice.name: value}))
            if neighbour in self and neighbour != architecture:
                found[neighbour] = None
            if len(found) == count:
                break
        return list(found)

    def pool(self, random: Random, leaders: Sequence[Architecture] = ()) -> Sequence[Architecture]:
        """Members to choose from: all, or of a space that has too many a sample, and neighbours of the leaders.

        Args:
            random: What is drawn from; of a space that can be enumerated nothing is.
            leaders: Members that are worth a closer look.
        """
        if self.is_enumerable:
            return self.architectures
        members = self.sample(random, POOL_SIZE)
        for leader in leaders:
            members += self.neighbours(leader, random, NEIGHBOURS)
        return list(dict.fromkeys(members))

    def with_dividing_heads(self, architecture: Architecture) -> Architecture:
        """The architecture with heads that divide its hidden size: the nearest of the space, by ratio."""
        heads = self._heads(architecture.hidden_size)
        if not heads:
            return architecture
        nearest = tuple(
            min(heads, key=lambda able: abs(math.log(able / wanted)))
            for wanted in architecture.per_layer("num_attention_heads")
        )
        return replace(architecture, num_attention_heads=nearest)

    # ---- choices ----

    @cached_property
    def open_choices(self) -> tuple[Choice, ...]:
        """What a controller chooses, one after the other.

        ``embedding_size`` is among them if it is given. What differs by layer is one choice for each layer, as many
        as the deepest members have.
        """
        embedding = [] if self.embedding_size == (None,) else [Choice("embedding_size", self.embedding_size)]
        if not self.per_layer:
            first = [Choice(name, getattr(self, name)) for name in CHOICES[:3]]
            return (*first, *embedding, *(Choice(name, getattr(self, name)) for name in CHOICES[3:]))
        found = [Choice(name, getattr(self, name)) for name in ("num_hidden_layers", "hidden_size")] + embedding
        for name in PER_LAYER_FIELDS:
            values = getattr(self, name)
            layers = range(1, max(self.num_hidden_layers) + 1) if len(values) > 1 else [None]
            found += [Choice(name, values, layer) for layer in layers]
        return tuple(found)

    @property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Choices by their name in a trial's parameters."""
        return {choice.name: choice.values for choice in self.open_choices}

    def encode(self, architecture: Architecture) -> dict[str, Any]:
        """An architecture as parameters of a trial; `Architecture.from_params` is the inverse.

        Every trial has all parameters: those of layers that an architecture does not have repeat its last layer.
        """
        params = {choice.name: choice.of(architecture) for choice in self.open_choices}
        if params.get("embedding_size", 0) is None and None not in self.embedding_size:
            params["embedding_size"] = architecture.hidden_size
        return params

    # ---- files ----

    def as_dict(self) -> dict[str, Any]:
        """The space as it is written in YAML."""
        values = asdict(self)
        if self.embedding_size == (None,):
            del values["embedding_size"]
        if not self.per_layer:
            del values["per_layer"]
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "the search space") -> SearchSpace:
        """Make a space from a mapping.

        Raises:
            ValueError: If a name is unknown or missing, or the space is impossible.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}."
                raise ValueError(f"{source} has an unknown key {name!r}; {hint}")
        missing = [name for name in CHOICES if name not in values and name != "hidden_act"]
        if missing:
            raise ValueError(f"{source} has no choices for {', '.join(missing)}.")
        keywords: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**keywords)

    @classmethod
    def load(cls, name_or_path: str) -> SearchSpace:
        """Load a preset by name, or a YAML file.

        Raises:
            ValueError: If there is neither, or the space is impossible.
        """
        path = Path(name_or_path)
        if path.suffix not in (".yaml", ".yml"):
            path = PRESETS_FOLDER / f"{name_or_path}.yaml"
        if not path.is_file():
            presets = sorted(preset.stem for preset in PRESETS_FOLDER.glob("*.yaml"))
            raise ValueError(
                f"space={name_or_path!r} is neither a preset ({', '.join(presets)}) nor a YAML file that exists."
            )
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not valid YAML: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} must map choices to lists, as 'hidden_size: [192, 288]'.")
        return cls.from_dict(values, source=str(path))
