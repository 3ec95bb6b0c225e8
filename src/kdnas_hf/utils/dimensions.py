"""The shape of an encoder, whatever its configuration calls the fields."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from optimum.utils import NormalizedConfigManager
from transformers import PretrainedConfig


@dataclass(frozen=True)
class TeacherDimensions:
    """Shape of an encoder, whatever its configuration calls the fields."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    vocab_size: int

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> TeacherDimensions:
        """Read the dimensions of any configuration, by Optimum's normalised names where it knows the model type.

        Raises:
            ValueError: If the configuration does not tell a dimension.
        """
        try:
            normalized = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
        except KeyError:
            normalized = config  # a type that Optimum does not list: most use the standard names
        values: dict[str, Any] = {}
        for name in (field.name for field in fields(cls)):
            usual = "num_hidden_layers" if name == "num_layers" else name
            values[name] = getattr(normalized, name, None) or getattr(config, usual, None)
            if not isinstance(values[name], int):
                raise ValueError(
                    f"the teacher's configuration ({config.model_type}) does not tell {usual}; choose a BERT-like "
                    "encoder."
                )
        return cls(**values)
