"""The shape of a student as arguments of a command line."""

# No `from __future__ import annotations`: HfArgumentParser reads the types of these fields.

from dataclasses import dataclass, field
from typing import Any

from .architecture import Architecture


@dataclass
class StudentArguments:
    """A student whose shape is chosen by hand.

    Raises:
        ValueError: If there are more or fewer values than layers.
    """

    num_hidden_layers: int = field(metadata={"help": "Layers of the student."})
    num_attention_heads: list[int] = field(
        metadata={"help": "Heads of every layer, or one number for each; they must divide hidden_size."}
    )
    hidden_size: int = field(metadata={"help": "Width of the student's states."})
    intermediate_size: list[int] = field(
        metadata={"help": "Neurons of every feed-forward block, or one number for each."}
    )
    hidden_act: list[str] = field(
        default_factory=lambda: ["gelu"],
        metadata={"help": "Activation of every feed-forward block, or one name for each."},
    )
    embedding_size: int | None = field(
        default=None, metadata={"help": "Width of the word embeddings; by default that of the states."}
    )

    def __post_init__(self) -> None:
        _ = self.architecture

    @property
    def architecture(self) -> Architecture:
        """The shape."""
        return Architecture(
            self.num_hidden_layers,
            _one_or_all(self.num_attention_heads),
            self.hidden_size,
            _one_or_all(self.intermediate_size),
            _one_or_all(self.hidden_act),
            self.embedding_size,
        )


def _one_or_all(values: Any) -> Any:
    """A lone value is for all layers, also where a YAML file gives it without a list."""
    if not isinstance(values, list):
        return values
    return values[0] if len(values) == 1 else tuple(values)
