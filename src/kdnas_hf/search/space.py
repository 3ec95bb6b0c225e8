"""The search space: which shapes a student may have."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from transformers.activations import ACT2FN

from ..students import KDNASConfig

PRESETS_FOLDER = Path(__file__).parent / "presets"
BOUNDS = ("min_encoder_parameters", "max_encoder_parameters")


@dataclass(frozen=True)
class Architecture:
    """Shape of a student. Hashable: an architecture that was measured is recognised."""

    num_hidden_layers: int = field(metadata={"help": "Layers of the student."})
    num_attention_heads: int = field(metadata={"help": "Heads of each layer; they must divide hidden_size."})
    hidden_size: int = field(metadata={"help": "Width of the student's states."})
    intermediate_size: int = field(metadata={"help": "Neurons of each feed-forward block."})
    hidden_act: str = field(default="gelu", metadata={"help": "Activation of the feed-forward blocks."})

    def to_config(self, **kwargs: Any) -> KDNASConfig:
        """The configuration of a student of this shape; ``kwargs`` are what the shape leaves open."""
        return KDNASConfig(**asdict(self), **kwargs)

    def as_dict(self) -> dict[str, int | str]:
        """The choices by name, for JSON."""
        return asdict(self)

    @property
    def encoder_parameters(self) -> int:
        """Parameters of all layers, without embeddings."""
        hidden, inner = self.hidden_size, self.intermediate_size
        attention = 4 * (hidden * hidden + hidden)
        feed_forward = 2 * hidden * inner + inner + hidden
        layer_norms = 4 * hidden
        return self.num_hidden_layers * (attention + feed_forward + layer_norms)

    def __str__(self) -> str:
        return (
            f"{self.num_hidden_layers}x{self.hidden_size} heads {self.num_attention_heads} "
            f"ffn {self.intermediate_size} {self.hidden_act}"
        )


CHOICES = tuple(field.name for field in fields(Architecture))


@dataclass(frozen=True)
class SearchSpace:
    """All combinations of choices whose heads divide the hidden size and that keep within the bounds.

    Args:
        num_hidden_layers: Choices.
        num_attention_heads: Choices.
        hidden_size: Choices.
        intermediate_size: Choices.
        hidden_act: Choices, names of transformers' activations.
        min_encoder_parameters: Fewest parameters of all layers together, embeddings not counted.
        max_encoder_parameters: Most parameters of all layers together, embeddings not counted.

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

    def __post_init__(self) -> None:
        for name in CHOICES:
            values = getattr(self, name)
            if isinstance(values, str | int) or not isinstance(values, Sequence):
                raise ValueError(f"{name}={values!r} must be a list of choices; write [{values}].")
            if not values:
                raise ValueError(f"{name} has no choices; name at least one.")
            object.__setattr__(self, name, tuple(dict.fromkeys(values)))  # equal choices count once
        for name in CHOICES[:-1]:
            for value in getattr(self, name):
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    raise ValueError(f"{name} has the choice {value!r}; choices are positive integers.")
        for value in self.hidden_act:
            if value not in ACT2FN:
                nearest = difflib.get_close_matches(str(value), ACT2FN, n=1)
                hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
                raise ValueError(f"hidden_act has the choice {value!r}, which transformers does not know.{hint}")
        for name in BOUNDS:
            bound = getattr(self, name)
            if bound is not None and (not isinstance(bound, int) or bound < 1):
                raise ValueError(f"{name}={bound!r} must be a positive integer, or be left out.")
        self._refuse_if_empty()

    def _refuse_if_empty(self) -> None:
        combinations = [Architecture(*values) for values in itertools.product(*(getattr(self, n) for n in CHOICES))]
        divisible = [a for a in combinations if a.hidden_size % a.num_attention_heads == 0]
        if not divisible:
            raise ValueError(
                f"the search space is empty: no num_attention_heads of {list(self.num_attention_heads)} divides a "
                f"hidden_size of {list(self.hidden_size)}; add heads that do."
            )
        if not any(self._within_bounds(a) for a in divisible):
            sizes = [a.encoder_parameters for a in divisible]
            raise ValueError(
                f"the search space is empty: its architectures have {min(sizes):,} to {max(sizes):,} encoder "
                f"parameters, the bounds ask for {self.min_encoder_parameters or 0:,} to "
                f"{self.max_encoder_parameters or math.inf:,}; widen min_encoder_parameters or max_encoder_parameters."
            )

    def _within_bounds(self, architecture: Architecture) -> bool:
        size = architecture.encoder_parameters
        low = self.min_encoder_parameters or 0
        high = self.max_encoder_parameters or math.inf
        return low <= size <= high

    @cached_property
    def architectures(self) -> tuple[Architecture, ...]:
        """Every architecture of the space, in a fixed order."""
        return tuple(
            architecture
            for values in itertools.product(*(getattr(self, name) for name in CHOICES))
            if (architecture := Architecture(*values)) in self
        )

    def __contains__(self, architecture: object) -> bool:
        return (
            isinstance(architecture, Architecture)
            and all(getattr(architecture, name) in getattr(self, name) for name in CHOICES)
            and architecture.hidden_size % architecture.num_attention_heads == 0
            and self._within_bounds(architecture)
        )

    def __len__(self) -> int:
        return len(self.architectures)

    def __iter__(self) -> Iterator[Architecture]:
        return iter(self.architectures)

    @property
    def choices(self) -> dict[str, tuple[int | str, ...]]:
        """Choices by name, in the order of `Architecture`'s fields."""
        return {name: getattr(self, name) for name in CHOICES}

    def as_dict(self) -> dict[str, Any]:
        """The space as it is written in YAML."""
        values = asdict(self)
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
