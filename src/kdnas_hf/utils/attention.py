"""Where an encoder makes its queries, keys and values, whatever its modules are called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

# names of the three linear maps in the encoders of transformers, and of those that make all three at once
_NAMES = (
    *(("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin")),
    *(("Wqkv",), ("qkv_proj",), ("query_key_value",)),
)


def find_attention_projections(model: nn.Module, num_layers: int) -> list[tuple[nn.Module, ...]]:
    """The linear maps to queries, keys and values of every layer, first layer first: three, or one that makes all.

    Raises:
        ValueError: If the model names them in a way that is not known here.
    """
    for names in _NAMES:
        found = [
            tuple(getattr(module, name) for name in names)
            for module in model.modules()
            if all(isinstance(getattr(module, name, None), nn.Module) for name in names)
        ]
        if len(found) == num_layers:
            return found
    raise ValueError(
        f"{type(model).__name__}: its query, key and value projections are not found, so that attention relations "
        "cannot be learned from it; use the losses hidden_states or cosine."
    )


@contextmanager
def record_projections(
    projections: list[tuple[nn.Module, ...]], layers: Sequence[int]
) -> Iterator[dict[int, tuple[torch.Tensor, ...]]]:
    """Record what layers, counted from 1, make of a text that the model reads inside the block.

    Yields:
        Filled behind the block: for each layer queries, keys and values, each ``(batch, sequence, heads * head_size)``.
    """
    made: dict[nn.Module, torch.Tensor] = {}
    recorded: dict[int, tuple[torch.Tensor, ...]] = {}
    hooks = [
        module.register_forward_hook(lambda module, _, output: made.__setitem__(module, output))
        for layer in layers
        for module in projections[layer - 1]
    ]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        outputs = tuple(made[module] for module in projections[layer - 1])
        recorded[layer] = outputs if len(outputs) == 3 else outputs[0].chunk(3, dim=-1)


@contextmanager
def eager_attention(model: PreTrainedModel, wanted: bool = True) -> Iterator[None]:
    """Attend in plain operations inside the block, and as before behind it, if that is wanted.

    These alone give attention maps, and on a CPU their backward pass in bf16 is several times as fast as that of
    torch's fused attention. Numbers are the same to rounding.
    """
    before = model.config._attn_implementation
    changes = wanted and before != "eager"
    if changes:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if changes:
            model.set_attn_implementation(before)
