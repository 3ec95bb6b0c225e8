"""The shape of a student, and the same as arguments of a command line."""

# No `from __future__ import annotations`: HfArgumentParser reads the types of `StudentArguments`.

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from .configuration_kdnas import KDNASConfig

CHOICES = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "hidden_act")
PER_LAYER_FIELDS = ("num_attention_heads", "intermediate_size", "hidden_act")


@dataclass(frozen=True)
class Architecture:
    """Shape of a student, and which of its teacher's layers it keeps. Hashable: what was measured is recognised.

    What can be said in two ways is stored in one: equal values of all layers as that value, and an embedding size that
    is the hidden size as None.

    Args:
        num_hidden_layers: Layers of the student.
        num_attention_heads: Heads of every layer, or one number for each; they must divide the hidden size.
        hidden_size: Width of the student's states.
        intermediate_size: Neurons of every feed-forward block, or one number for each.
        hidden_act: Activation of every feed-forward block, or one name for each.
        embedding_size: Width of the word embeddings; None is that of the states.
        teacher_layers: The teacher's layers, from 1, that its own start as copies of; None where the shape leaves that
            open.

    Raises:
        ValueError: If there are more or fewer values than layers, or the teacher's layers do not ascend.
    """

    num_hidden_layers: int
    num_attention_heads: int | tuple[int, ...]
    hidden_size: int
    intermediate_size: int | tuple[int, ...]
    hidden_act: str | tuple[str, ...] = "gelu"
    embedding_size: int | None = None
    teacher_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in PER_LAYER_FIELDS:
            value = getattr(self, name)
            if not isinstance(value, list | tuple):
                continue
            if len(value) not in (1, self.num_hidden_layers):
                raise ValueError(
                    f"{name}={list(value)} has {len(value)} values for num_hidden_layers={self.num_hidden_layers}; "
                    "give one for all layers or one for each."
                )
            object.__setattr__(self, name, value[0] if len(set(value)) == 1 else tuple(value))
        if self.embedding_size == self.hidden_size:
            object.__setattr__(self, "embedding_size", None)
        if self.teacher_layers is not None:
            kept = tuple(self.teacher_layers)
            are_layers = len(kept) == self.num_hidden_layers and all(isinstance(one, int) and one > 0 for one in kept)
            if not are_layers or list(kept) != sorted(set(kept)):
                raise ValueError(
                    f"teacher_layers={list(kept)} must name {self.num_hidden_layers} different layers of the teacher, "
                    "one for each of the student's, counted from 1 and in ascending order."
                )
            object.__setattr__(self, "teacher_layers", kept)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """The architecture that a trial's parameters name (see `SearchSpace.encode`); KeyError if one is missing."""
        layers = range(1, params["num_hidden_layers"] + 1)
        values = {name: params[name] for name in ("num_hidden_layers", "hidden_size")}
        for name in PER_LAYER_FIELDS:
            values[name] = params[name] if name in params else tuple(params[f"{name}_{layer}"] for layer in layers)
        if "teacher_layer_1" in params:
            values["teacher_layers"] = tuple(params[f"teacher_layer_{layer}"] for layer in layers)
        return cls(embedding_size=params.get("embedding_size"), **values)

    def to_config(self, **kwargs: Any) -> KDNASConfig:
        """The configuration of a student of this shape; ``kwargs`` are what the shape leaves open."""
        return KDNASConfig(**asdict(self), **kwargs)

    def as_dict(self) -> dict[str, Any]:
        """The choices by name, for JSON; without what is None."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {name: value for name, value in values.items() if value is not None}

    def chosen(self, name: str) -> Any:
        """What it has for a parameter of a trial; of a layer that it does not have, what its last layer has."""
        of, layer = field_of(name)
        return getattr(self, of) if layer is None else self.per_layer(of)[:layer][-1]

    def per_layer(self, name: str) -> tuple[Any, ...]:
        """Values of a field, ``num_hidden_layers`` of them."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * self.num_hidden_layers

    @property
    def is_homogeneous(self) -> bool:
        """Whether all layers have the same shape."""
        return not any(isinstance(getattr(self, name), tuple) for name in PER_LAYER_FIELDS)

    @property
    def word_embedding_size(self) -> int:
        """Width of the word embeddings, whether given or not."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @property
    def encoder_parameters(self) -> int:
        """Parameters of all layers, without embeddings."""
        neurons = sum(self.per_layer("intermediate_size"))
        return count_encoder_parameters(self.num_hidden_layers, self.hidden_size, neurons)

    def __str__(self) -> str:
        def shown(value: Any) -> str:
            return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

        heads, inner, activation = (shown(getattr(self, name)) for name in PER_LAYER_FIELDS)
        shape = f"{self.num_hidden_layers}x{self.hidden_size} heads {heads} ffn {inner} {activation}"
        shape += "" if self.embedding_size is None else f" emb {self.embedding_size}"
        return shape + ("" if self.teacher_layers is None else f" layers {shown(self.teacher_layers)}")


def field_of(name: str) -> tuple[str, int | None]:
    """The field that a parameter of a trial is for, and the layer, from 1; None where it is for all of them."""
    start, _, layer = name.rpartition("_")
    if not layer.isdigit():
        return name, None
    return "teacher_layers" if start == "teacher_layer" else start, int(layer)


def count_encoder_parameters(layers: int, hidden_size: int, neurons: int) -> int:
    """Parameters of an encoder's layers whose feed-forward blocks have so many neurons together."""
    attention, biases_and_norms = 4 * hidden_size * hidden_size, 9 * hidden_size
    return layers * (attention + biases_and_norms) + neurons * (2 * hidden_size + 1)


@dataclass
class StudentArguments:
    """A student whose shape is chosen by hand; ValueError if there are more or fewer values than layers."""

    num_hidden_layers: int = field(metadata={"help": "Layers of the student."})
    num_attention_heads: list[int] = field(metadata={"help": "Heads, for all or for each layer; divide hidden_size."})
    hidden_size: int = field(metadata={"help": "Width of the student's states."})
    intermediate_size: list[int] = field(metadata={"help": "Neurons of its feed-forward block, for all or for each."})
    hidden_act: list[str] = field(
        default_factory=lambda: ["gelu"], metadata={"help": "Activation of them, for all or for each layer."}
    )
    embedding_size: int | None = field(
        default=None, metadata={"help": "Width of the word embeddings; by default that of the states."}
    )

    def __post_init__(self) -> None:
        _ = self.architecture

    @property
    def architecture(self) -> Architecture:
        """The shape."""
        return Architecture(**vars(self))
