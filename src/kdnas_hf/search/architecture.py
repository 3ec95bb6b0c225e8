"""The shape of a student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..students import KDNASConfig

CHOICES = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "hidden_act")
PER_LAYER_FIELDS = ("num_attention_heads", "intermediate_size", "hidden_act")


@dataclass(frozen=True)
class Architecture:
    """Shape of a student. Hashable: an architecture that was measured is recognised.

    What can be said in two ways is stored in one: equal values of all layers as that value, and an embedding size that
    is the hidden size as None.

    Args:
        num_hidden_layers: Layers of the student.
        num_attention_heads: Heads of every layer, or one number for each; they must divide the hidden size.
        hidden_size: Width of the student's states.
        intermediate_size: Neurons of every feed-forward block, or one number for each.
        hidden_act: Activation of every feed-forward block, or one name for each.
        embedding_size: Width of the word embeddings; None is that of the states.

    Raises:
        ValueError: If there are more or fewer values than layers.
    """

    num_hidden_layers: int
    num_attention_heads: int | tuple[int, ...]
    hidden_size: int
    intermediate_size: int | tuple[int, ...]
    hidden_act: str | tuple[str, ...] = "gelu"
    embedding_size: int | None = None

    def __post_init__(self) -> None:
        for name in PER_LAYER_FIELDS:
            value = getattr(self, name)
            if not isinstance(value, list | tuple):
                continue
            if len(value) != self.num_hidden_layers:
                raise ValueError(
                    f"{name}={list(value)} has {len(value)} values for num_hidden_layers={self.num_hidden_layers}; "
                    "give one for all layers or one for each."
                )
            object.__setattr__(self, name, value[0] if len(set(value)) == 1 else tuple(value))
        if self.embedding_size == self.hidden_size:
            object.__setattr__(self, "embedding_size", None)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Architecture:
        """The architecture that a trial's parameters name (see `SearchSpace.encode`).

        Raises:
            KeyError: If a choice is missing.
        """
        layers = range(1, params["num_hidden_layers"] + 1)
        values = {
            name: params[name] if name in params else tuple(params[f"{name}_{layer}"] for layer in layers)
            for name in PER_LAYER_FIELDS
        }
        return cls(
            num_hidden_layers=params["num_hidden_layers"],
            hidden_size=params["hidden_size"],
            embedding_size=params.get("embedding_size"),
            **values,
        )

    def to_config(self, **kwargs: Any) -> KDNASConfig:
        """The configuration of a student of this shape; ``kwargs`` are what the shape leaves open."""
        return KDNASConfig(**asdict(self), **kwargs)

    def as_dict(self) -> dict[str, Any]:
        """The choices by name, for JSON; without an embedding size that is the hidden size."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {name: value for name, value in values.items() if value is not None}

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
        return count_encoder_parameters(
            self.num_hidden_layers, self.hidden_size, neurons=sum(self.per_layer("intermediate_size"))
        )

    def __str__(self) -> str:
        heads, inner, activation = (
            ",".join(str(one) for one in value) if isinstance(value := getattr(self, name), tuple) else str(value)
            for name in PER_LAYER_FIELDS
        )
        shape = f"{self.num_hidden_layers}x{self.hidden_size} heads {heads} ffn {inner} {activation}"
        return shape if self.embedding_size is None else f"{shape} emb {self.embedding_size}"


def count_encoder_parameters(layers: int, hidden_size: int, neurons: int) -> int:
    """Parameters of an encoder's layers whose feed-forward blocks have so many neurons together."""
    attention = 4 * (hidden_size * hidden_size + hidden_size)
    layer_norms = 4 * hidden_size
    return layers * (attention + layer_norms + hidden_size) + neurons * (2 * hidden_size + 1)
