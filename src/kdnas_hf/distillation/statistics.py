"""Mean and standard deviation of a teacher's hidden states, by which targets are standardized."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load, save_file

from .batch import exactly


class HiddenStateStatistics:
    """Mean and standard deviation of the teacher's hidden states, per layer and dimension.

    Standardized targets have mean 0 and variance 1 in every dimension, so that no layer and no dimension of huge
    magnitude outweighs the others, and a mean squared error of 1 is what predicting the mean earns.

    Args:
        mean: By layer, ``(hidden_size,)``.
        std: By layer, ``(hidden_size,)``.
    """

    def __init__(self, mean: Mapping[int, torch.Tensor], std: Mapping[int, torch.Tensor]) -> None:
        self.mean = dict(mean)
        self.std = dict(std)

    @classmethod
    def estimate(cls, batches: Iterable[Mapping[int, torch.Tensor]]) -> HiddenStateStatistics:
        """Estimate from batches: for each layer the states ``(tokens, hidden_size)`` of real (unpadded) tokens.

        Raises:
            ValueError: If there are fewer than two tokens.
        """
        count = 0
        sums: dict[int, torch.Tensor] = {}
        for batch in batches:
            for layer, states in batch.items():
                exact = exactly(states)
                rows = torch.stack([exact.sum(0), exact.square().sum(0)])
                sums[layer] = sums[layer] + rows if layer in sums else rows
            count += len(next(iter(batch.values())))
        if count < 2:
            raise ValueError("the teacher's statistics need at least two tokens of training text.")
        mean, std = {}, {}
        for layer, (total, squares) in sums.items():
            average = total / count
            variance = (squares / count - average.square()).clamp_min(0)
            mean[layer] = average.float()
            # a dimension in which the teacher is constant is left unscaled rather than blown up
            std[layer] = torch.where(variance > 1e-12, variance.sqrt(), 1.0).float()
        return cls(mean, std)

    def to(self, device: torch.device | str) -> HiddenStateStatistics:
        """Return the statistics on a device."""
        mean, std = ({layer: value.to(device) for layer, value in part.items()} for part in (self.mean, self.std))
        return HiddenStateStatistics(mean, std)

    def standardize(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        """Standardize states ``(…, hidden_size)`` of a layer, in float32."""
        return (states.float() - self.mean[layer]) / self.std[layer]

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file."""
        tensors = {f"mean.{layer}": values for layer, values in self.mean.items()}
        tensors |= {f"std.{layer}": values for layer, values in self.std.items()}
        save_file({name: values.contiguous().cpu() for name, values in tensors.items()}, str(path))

    @classmethod
    def load(cls, path: str | Path) -> HiddenStateStatistics:
        """Read from a file that `save` wrote."""
        parts: dict[str, dict[int, torch.Tensor]] = {"mean": {}, "std": {}}
        # read, not mapped: the file goes when its checkpoint is rotated
        for name, values in load(Path(path).read_bytes()).items():
            part, layer = name.split(".")
            parts[part][int(layer)] = values
        return cls(parts["mean"], parts["std"])
