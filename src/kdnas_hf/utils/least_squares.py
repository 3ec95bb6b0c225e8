"""Ridge regression from sums that are added up batch by batch."""

from __future__ import annotations

import torch
from torch import nn

# in units of the mean square of the inputs
_RIDGE_PENALTY = 0.01


class LeastSquares:
    """Linear regression with a constant of targets on inputs, from sums that are added up batch by batch."""

    def __init__(self) -> None:
        self.inputs: torch.Tensor | None = None  # (in + 1, in + 1) float64, products of inputs, the constant last
        self.cross: torch.Tensor | None = None  # (in + 1, out) float64, products of inputs with targets

    @torch.no_grad()
    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Count ``(tokens, in)`` and ``(tokens, out)``."""
        inputs = torch.cat([inputs.float(), inputs.new_ones((len(inputs), 1), dtype=torch.float32)], dim=1)
        # products rounded to bf16 are no longer positive definite
        with torch.autocast(inputs.device.type, enabled=False):
            squares, cross = (inputs.T @ inputs).cpu().double(), (inputs.T @ targets.float()).cpu().double()
        self.inputs = squares if self.inputs is None else self.inputs + squares
        self.cross = cross if self.cross is None else self.cross + cross

    @torch.no_grad()
    def set_map(self, linear: nn.Linear, basis: torch.Tensor | None) -> None:
        """Set a map ``(in, out)`` to the solution.

        Args:
            linear: The map.
            basis: ``(size, in)``, whose rows the targets are expected to be along, one for each of the targets or of a
                part of them that repeats. Each target is regressed on its row first, and ridge regression explains
                what is left: a student that is an exact copy of its teacher starts without any error.
        """
        assert self.inputs is not None
        assert self.cross is not None
        prior = torch.zeros_like(self.cross)
        if basis is not None:
            rows = basis.double().cpu().repeat(self.cross.shape[1] // len(basis), 1)
            count, mean = self.inputs[-1, -1], self.inputs[:-1, -1] / self.inputs[-1, -1]
            along, target_mean = rows @ mean, self.cross[-1] / count
            variance = ((rows @ self.inputs[:-1, :-1]) * rows).sum(1) - count * along.square()
            covariance = (rows * self.cross[:-1].T).sum(1) - count * along * target_mean
            # along a row where the inputs are constant, what is left of the sums is their rounding
            rounding = 8 * torch.finfo(torch.float32).eps * self.inputs.diagonal()[:-1].sum() * rows.square().sum(1)
            slope = torch.where(variance > rounding, covariance / variance, 0.0)
            prior[:-1] = (rows * slope[:, None]).T
            prior[-1] = target_mean - slope * along
        penalty = torch.eye(len(self.inputs), dtype=torch.float64)
        penalty[-1, -1] = 0  # the constant is not shrunk
        penalty *= _RIDGE_PENALTY * self.inputs.diagonal()[:-1].mean()
        solution = prior + torch.linalg.solve(self.inputs + penalty, self.cross - self.inputs @ prior)
        linear.weight.copy_(solution[:-1].T)
        linear.bias.copy_(solution[-1])
