"""Where an encoder makes its queries, keys and values, whatever its modules are called."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

# names of the three linear maps in the encoders of transformers, and of those that make all three at once
SEPARATE = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"))
FUSED = ("Wqkv", "qkv_proj", "query_key_value")


@dataclass(frozen=True)
class AttentionProjections:
    """The linear maps of one layer from its attention's input to queries, keys and values.

    Attributes:
        maps: Three maps, or one that makes all three side by side.
    """

    maps: tuple[nn.Module, ...]

    def __call__(self, attention_input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map ``(…, hidden_size)`` to queries, keys and values, each ``(…, heads * head_size)``."""
        first = next(self.maps[0].parameters())
        made = [linear(attention_input.to(first.dtype)) for linear in self.maps]
        query, key, value = made if len(made) == 3 else made[0].chunk(3, dim=-1)
        return query, key, value


def find_attention_projections(model: nn.Module, num_layers: int) -> list[AttentionProjections]:
    """The projections of every layer, first layer first.

    Raises:
        ValueError: If the model names them in a way that is not known here.
    """
    for names in (*SEPARATE, *((fused,) for fused in FUSED)):
        found = [
            AttentionProjections(tuple(getattr(module, name) for name in names))
            for module in model.modules()
            if all(isinstance(getattr(module, name, None), nn.Module) for name in names)
        ]
        if len(found) == num_layers:
            return found
    raise ValueError(
        f"{type(model).__name__}: its query, key and value projections are not found, so that attention relations "
        "cannot be learnt from it; use the losses hidden_states or cosine."
    )
