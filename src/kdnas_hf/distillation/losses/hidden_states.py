"""Hidden-state loss: a student's layers, projected, against the layers of the teacher that they learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..layer_mapping import LayerPair

PROJECTIONS = ("per_layer", "shared")


class HiddenStateProjections(nn.Module):
    """Learnt linear maps from a student's states to its teacher's, kept outside the student and not saved with it.

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
        self.maps = nn.ModuleDict()
        targets = {layer: len(teachers) for layer, teachers in self.teacher_layers.items()}
        widths = {"shared": max(targets.values())} if shared else {str(layer): n for layer, n in targets.items()}
        for name, width in widths.items():
            linear = nn.Linear(hidden_size, width * teacher_hidden_size)
            if basis is not None:
                with torch.no_grad():
                    linear.weight.copy_(basis.repeat(width, 1))
                    linear.bias.zero_()
            self.maps[name] = linear

    def forward(self, layer: int, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Predict the teacher's states from those of student layer ``layer``.

        Args:
            layer: A mapped student layer, counted from 1.
            states: ``(tokens, hidden_size)``.

        Returns:
            One ``(tokens, teacher_hidden_size)`` tensor for each teacher layer that the student layer learns from.
        """
        projected = self.maps["shared" if self.shared else str(layer)](states)
        return projected.split(self.teacher_hidden_size, dim=-1)[: len(self.teacher_layers[layer])]


def hidden_state_loss(
    predictions: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], num_tokens: torch.Tensor | float
) -> torch.Tensor:
    """Mean squared error over tokens, dimensions and pairs of layers.

    Args:
        predictions: For each pair of layers ``(tokens, teacher_hidden_size)``, real (unpadded) tokens only.
        targets: The same for the teacher; standardised if ``hidden_state_normalization="standardize"``.
        num_tokens: What to divide by: the tokens of the whole accumulated batch, of which these may be a part.

    Returns:
        A float32 scalar.
    """
    total = predictions[0].new_zeros((), dtype=torch.float32)
    for prediction, target in zip(predictions, targets, strict=True):
        total = total + torch.nn.functional.mse_loss(prediction.float(), target.float(), reduction="sum")
    return total / (num_tokens * len(targets) * targets[0].shape[-1])


def cosine_loss(
    predictions: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], num_tokens: torch.Tensor | float
) -> torch.Tensor:
    """Mean of 1 - cosine over tokens and pairs of layers (DistilBERT, arXiv 1910.01108).

    Args:
        predictions: For each pair of layers ``(tokens, teacher_hidden_size)``, real (unpadded) tokens only.
        targets: The same for the teacher.
        num_tokens: What to divide by: the tokens of the whole accumulated batch, of which these may be a part.

    Returns:
        A float32 scalar (float64 for float64 predictions) between 0 and 2; a vector of zeros is at 1 from all others.
    """
    wide = torch.promote_types(predictions[0].dtype, torch.float32)
    total = predictions[0].new_zeros((), dtype=wide)
    for prediction, target in zip(predictions, targets, strict=True):
        # an eps that is not tiny, as the gradient at zero is a unit vector over eps
        cosine = torch.nn.functional.cosine_similarity(prediction.to(wide), target.to(wide), dim=-1, eps=1e-4)
        total = total + (1 - cosine).sum()
    return total / (num_tokens * len(targets))


class ExplainedVariance:
    """R² of predicted states on held-out text: the share of the teacher's variance that a student explains.

    R² is 1 - SSE / SST for every dimension, averaged over dimensions, with the variance taken around the mean of the
    held-out tokens themselves. Being scale-free in every dimension, it is the same for raw and standardised targets.
    The sums are additive, so that processes can add theirs up.

    Args:
        keys: Names of what is predicted, mapped to the teacher layer that it is compared with.
        teacher_hidden_size: H_T.
    """

    def __init__(self, keys: Mapping[tuple[str, int], int], teacher_hidden_size: int) -> None:
        self.keys = dict(keys)
        self.layers = sorted(set(self.keys.values()))
        # float64: sums of squares over many tokens, of which a small difference is taken
        self.sums = torch.zeros(len(self.keys) + 2 * len(self.layers), teacher_hidden_size, dtype=torch.float64)
        self.tokens = torch.zeros((), dtype=torch.float64)

    def add_targets(self, targets: Mapping[int, torch.Tensor]) -> None:
        """Count one batch of teacher states, ``(tokens, teacher_hidden_size)`` for each layer."""
        for index, layer in enumerate(self.layers):
            states = targets[layer].float().cpu().double()  # not every accelerator has float64
            self.sums[len(self.keys) + 2 * index] += states.sum(0)
            self.sums[len(self.keys) + 2 * index + 1] += states.square().sum(0)
        self.tokens += targets[self.layers[0]].shape[0]

    def add_prediction(self, key: tuple[str, int], prediction: torch.Tensor, target: torch.Tensor) -> None:
        """Count one batch of predicted states, both ``(tokens, teacher_hidden_size)``."""
        error = (prediction.float() - target.float()).square().sum(0)
        self.sums[list(self.keys).index(key)] += error.cpu().double()

    def mean_squared_error(self, key: tuple[str, int]) -> float:
        """Mean squared error of a prediction over tokens and dimensions."""
        return float(self.sums[list(self.keys).index(key)].mean() / self.tokens)

    def r2(self, key: tuple[str, int]) -> float:
        """R² of a prediction; dimensions in which the teacher is constant do not count."""
        index = len(self.keys) + 2 * self.layers.index(self.keys[key])
        total = self.sums[index + 1] - self.sums[index].square() / self.tokens
        varying = total > 1e-9 * self.sums[index + 1].clamp_min(1e-30)
        error = self.sums[list(self.keys).index(key)]
        return float((1 - error[varying] / total[varying]).mean())
