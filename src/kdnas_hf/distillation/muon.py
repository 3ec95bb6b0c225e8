"""Muon for the matrices of the students' layers, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) beside AdamW, both torch's own.

    Muon orthogonalises the update of each matrix. Its step is scaled to the size of an AdamW step
    (``match_rms_adamw``), so that learning rates of both are of one kind.

    Args:
        matrices: Weights of two dimensions for Muon.
        others: Parameter groups for AdamW, with their ``weight_decay``.
        muon_learning_rate: Learning rate of the matrices.
        learning_rate: Learning rate of the others.
        weight_decay: Of the matrices.
        betas: Of AdamW.
        eps: Of AdamW.

    Raises:
        ValueError: If this version of torch has no Muon.
    """

    def __init__(
        self,
        matrices: Iterable[torch.Tensor],
        others: Iterable[dict[str, Any]],
        muon_learning_rate: float,
        learning_rate: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError("matrix_optimizer='muon' needs torch 2.9 or later; update it, or choose 'adamw'.")
        self.parts = (
            torch.optim.Muon(
                matrices, lr=muon_learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(list(others), lr=learning_rate, betas=betas, eps=eps, fused=True),
        )
        # the groups are those of the parts, not copies: a schedule sets the learning rates of both
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state = {p: state for part in self.parts for p, state in part.state.items()}  # type: ignore[assignment]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        self._share()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share()
