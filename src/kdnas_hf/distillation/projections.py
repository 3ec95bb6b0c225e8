"""Learnable linear maps from a student's states to its teacher's, and where they start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .layer_mapping import LayerPair


class HiddenStateProjections(nn.Module):
    """Linear maps from a student's states to its teacher's, kept outside the student and not saved with it.

    A student layer that learns from ``n`` teacher layers is mapped from ``hidden_size`` to ``n * teacher_hidden_size``
    dimensions (KD-NAS, arXiv 2303.09639: H_S -> 2 * H_T).

    Args:
        pairs: Which student layer learns from which teacher layer.
        hidden_size: H_S of the student.
        teacher_hidden_size: H_T of the teacher.
        shared: One map for all student layers, as published, instead of one per layer.
        basis: ``(teacher_hidden_size, hidden_size)``; where every map starts, so that the student's residual stream
            lives in one basis from its embeddings to its last layer. ``None`` starts at random.
    """

    def __init__(
        self,
        pairs: Sequence[LayerPair],
        hidden_size: int,
        teacher_hidden_size: int,
        shared: bool = False,
        basis: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.teacher_layers: dict[int, list[int]] = {}
        for pair in pairs:
            self.teacher_layers.setdefault(pair.student, []).append(pair.teacher)
        self.teacher_hidden_size = teacher_hidden_size
        self.shared = shared
        self.basis = basis
        self.maps = nn.ModuleDict()
        widths = {str(layer): len(teachers) for layer, teachers in self.teacher_layers.items()}
        if shared:
            widths = {"shared": max(widths.values())}
        for name, width in widths.items():
            self.maps[name] = linear = nn.Linear(hidden_size, width * teacher_hidden_size)
            if basis is not None:
                linear.weight.data.copy_(basis.repeat(width, 1))
                linear.bias.data.zero_()

    def map_of(self, layer: int) -> nn.Linear:
        """The map of a student layer, counted from 1."""
        linear = self.maps["shared" if self.shared else str(layer)]
        assert isinstance(linear, nn.Linear)
        return linear

    def forward(self, layer: int, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Predict the teacher's states from those ``(tokens, hidden_size)`` of a student layer, counted from 1.

        Returns:
            ``(tokens, teacher_hidden_size)`` for each teacher layer that the student layer learns from.
        """
        projected = self.map_of(layer)(states)
        return projected.split(self.teacher_hidden_size, dim=-1)[: len(self.teacher_layers[layer])]
