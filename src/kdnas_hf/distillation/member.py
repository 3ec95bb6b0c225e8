"""One student with what it learns by: it steps alone, on targets that were made once for all."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from accelerate.accelerator import Accelerator
from torch import nn

from ..students import KDNASModel
from ..utils.random_state import drawing, seed_of
from .batch import DistillationBatch
from .losses import Loss
from .student_outputs import Student, StudentOutputs, encoder_of
from .teacher_outputs import Required


class Member(nn.Module):
    """One student of a pool with its losses.

    Forward, backward, clipping and dropping are its own: its weights are the same, bit by bit, whoever else is in the
    pool, and its activations are free before the next one steps.

    Args:
        model: The student, with the head that a loss needs.
        losses: Its losses by name.
        weights: Their weights.
        seed: What its dropout is drawn from.
        given: Whether the student was given rather than made for this pool: its modules are not replaced.
    """

    def __init__(
        self,
        model: Student,
        losses: Mapping[str, Loss],
        weights: Mapping[str, float],
        seed: int = 0,
        given: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)
        self.seed = seed
        self.given = given
        self.started = False  # whether its losses were fitted to the teacher, or it was trained, already
        self.scaler: torch.amp.GradScaler | None = None  # of fp16
        self._finite: torch.Tensor | None = None  # whether all losses since the last step are
        self._carrier: torch.optim.Optimizer | None = None

    @property
    def student(self) -> KDNASModel:
        """The encoder."""
        return encoder_of(self.model)

    @property
    def required(self) -> Required:
        """The teacher outputs that it learns from."""
        required = Required()
        for loss in self.all_losses():
            required |= loss.required
        return required

    def all_losses(self) -> list[Loss]:
        """Its losses in the order in which they were named."""
        return [loss for loss in self.losses.values() if isinstance(loss, Loss)]

    def forward(self, batch: DistillationBatch) -> StudentOutputs:
        """Read a batch."""
        return StudentOutputs.read(self.model, batch, attention_maps=bool(self.required.attention_maps))

    def loss(self, batch: DistillationBatch) -> torch.Tensor:
        """The weighted sum of its losses on a batch, a scalar in float32 or wider."""
        outputs = self(batch)
        return torch.stack([self.weights[loss.name] * loss(outputs, batch) for loss in self.all_losses()]).sum()

    # ---- a step ----

    def backward(self, batch: DistillationBatch, autocast: AbstractContextManager, *place: int) -> torch.Tensor:
        """Add the gradient of a micro-batch to that of the step, and give its loss, a scalar.

        The forward pass runs in ``autocast``; ``place`` in the training, with the member's seed, decides its dropout.
        """
        with drawing(seed_of(self.seed, *place), batch.input_ids.device), autocast:
            loss = self.loss(batch)
        finite = loss.detach().isfinite()
        self._finite = finite if self._finite is None else self._finite & finite
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return loss.detach()

    def gradients(self) -> list[torch.Tensor]:
        """The gradients of all that trains and was reached by a loss."""
        return [p.grad for p in self.parameters() if p.grad is not None]

    def add_up_gradients(self, accelerator: Accelerator) -> None:
        """Give every process the sum of all processes' gradients."""
        gradients = self.gradients()
        flat = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="sum")
        for gradient, part in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def finish(self) -> torch.Tensor:
        """End a step's accumulation: ``(2,)``, the gradient's norm, unscaled, and whether all losses were finite."""
        gradients = self.gradients()
        if self.scaler is not None and gradients:
            if self._carrier is None:  # what the scaler knows parameters by
                self._carrier = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.0)
            self.scaler.unscale_(self._carrier)
            self.scaler.update()
        finite, self._finite = self._finite, None
        norm = nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        return torch.stack(
            [norm.float(), norm.new_ones(()).float() if finite is None else finite.float().to(norm.device)]
        )

    def clip(self, norm: float, max_norm: float) -> None:
        """Scale the gradient to ``max_norm`` where its norm is larger; 0 leaves it as it is."""
        if max_norm and norm > max_norm:
            torch._foreach_mul_(self.gradients(), max_norm / (norm + 1e-6))

    def forget_gradient(self) -> None:
        """Make no step: optimizers pass over parameters without a gradient."""
        self._finite = None
        for parameter in self.parameters():
            parameter.grad = None
