"""Hidden states: a student's layers, projected, against the teacher layers that they learn from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from ...utils.least_squares import LeastSquares
from ...utils.random_state import drawing
from ...utils.sentence_head import SentenceHead
from ..batch import DistillationBatch, exactly
from ..layer_mapping import LayerPair
from ..projections import HiddenStateProjections
from ..statistics import HiddenStateStatistics
from ..student_outputs import StudentOutputs
from ..teacher import Teacher
from ..teacher_outputs import Required
from .arguments import LossArguments
from .base import Loss, LossSetting, Measure, register_loss


def hidden_state_loss(
    predictions: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], num_tokens: torch.Tensor | float
) -> torch.Tensor:
    """Mean squared error over tokens, dimensions and pairs of layers.

    Args:
        predictions: For each pair of layers ``(tokens, teacher_hidden_size)``, real (unpadded) tokens only.
        targets: The same for the teacher; standardized if ``hidden_state_normalization="standardize"``.
        num_tokens: What to divide by: the tokens of the whole accumulated batch.

    Returns:
        A float32 scalar.
    """
    total = predictions[0].new_zeros((), dtype=torch.float32)
    for prediction, target in zip(predictions, targets, strict=True):
        total = total + torch.nn.functional.mse_loss(prediction.float(), target.float(), reduction="sum")
    return total / (num_tokens * len(targets) * targets[0].shape[-1])


class ProjectedStatesLoss(Loss):
    """What losses on projected states have in common: the projections, and where these start."""

    def __init__(self, setting: LossSetting) -> None:
        super().__init__(setting)
        self.pairs = list(setting.pairs)
        self.depths = (setting.student.config.num_hidden_layers, setting.teacher.dimensions.num_layers)
        basis = setting.basis if setting.args.projection_init == "fit" else None
        with drawing(setting.seed):
            self.projections = HiddenStateProjections(
                self.pairs,
                setting.student.config.hidden_size,
                setting.teacher.dimensions.hidden_size,
                shared=setting.args.projection == "shared",
                basis=basis,
            )
        # a projection that all layers share keeps its start: no layer is fitted alone
        self.fits = setting.args.projection_init == "fit" and not self.projections.shared

    @classmethod
    def requires(cls, args: LossArguments, pairs: Sequence[LayerPair], teacher: Teacher) -> Required:
        return Required(hidden_states=frozenset(pair.teacher for pair in pairs))

    def predictions(self, student: StudentOutputs) -> list[torch.Tensor]:
        """For each pair of mapped layers the projected states ``(tokens, teacher_hidden_size)``."""
        layers = self.projections.teacher_layers
        return [part for layer in layers for part in self.projections(layer, student.states(layer))]

    def targets(self, batch: DistillationBatch) -> list[torch.Tensor]:
        """For each pair of mapped layers the teacher's states ``(tokens, teacher_hidden_size)``."""
        return [batch.teacher_states(pair.teacher) for pair in self.pairs]

    @torch.no_grad()
    def sentence_head(self, teacher: SentenceHead, statistics: HiddenStateStatistics | None) -> SentenceHead | None:
        """The teacher's, behind the map of the student's last layer, where that learns from the teacher's last."""
        layer = max(self.projections.teacher_layers)
        teachers = self.projections.teacher_layers[layer]
        if (layer, max(teachers)) != self.depths or not teacher.commutes:
            return None
        size, place = self.projections.teacher_hidden_size, teachers.index(max(teachers))
        learned, folded = self.projections.map_of(layer), nn.Linear(self.projections.map_of(layer).in_features, size)
        rows = slice(place * size, (place + 1) * size)
        weight, bias = learned.weight[rows].float(), learned.bias[rows].float()
        if statistics is not None:  # the map gives standardized states
            mean, std = (part[max(teachers)].to(weight.device) for part in (statistics.mean, statistics.std))
            weight, bias = std[:, None] * weight, std * bias + mean
        folded.weight.copy_(weight)
        folded.bias.copy_(bias)
        return teacher.followed_by(folded, *teacher.layers)

    def fit(self, samples: Iterable[tuple[StudentOutputs, DistillationBatch]]) -> None:
        """Set each projection to the ridge regression of the teacher's states on the student's.

        Without this the first steps are spent on what least squares knows.
        """
        if not self.fits:
            return
        sums = {layer: LeastSquares() for layer in self.projections.teacher_layers}
        for student, batch in samples:
            for layer, teachers in self.projections.teacher_layers.items():
                targets = torch.cat([batch.teacher_states(teacher) for teacher in teachers], dim=1)
                sums[layer].add(student.states(layer), targets)
        for layer, regression in sums.items():
            regression.set_map(self.projections.map_of(layer), self.projections.basis)


@register_loss
class HiddenStatesLoss(ProjectedStatesLoss):
    """Squared error of projected states."""

    name = "hidden_states"
    agreement = "R²"
    description = "mean squared error between projected student layers and teacher layers"

    def forward(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        return hidden_state_loss(self.predictions(student), self.targets(batch), batch.num_tokens)

    def measure(self) -> Measure:
        return ExplainedVariance(self)


class ExplainedVariance(Measure):
    """R² of predicted states on held-out text: the share of the teacher's variance that a student explains.

    R² is 1 - SSE / SST for every dimension, averaged over dimensions, with the variance taken around the mean of the
    held-out tokens themselves. Being scale-free in every dimension, it is the same for raw and standardized targets.
    """

    loss: ProjectedStatesLoss

    def __init__(self, loss: ProjectedStatesLoss) -> None:
        self.loss = loss
        self.layers = sorted({pair.teacher for pair in loss.pairs})
        # squared errors of each pair; sums and sums of squares of each teacher layer; the tokens
        rows = len(loss.pairs) + 2 * len(self.layers) + 1
        self.sums = torch.zeros(rows, loss.projections.teacher_hidden_size, dtype=torch.float64)

    def add(self, student: StudentOutputs, batch: DistillationBatch) -> None:
        rows = [exactly((p.float() - t.float()).square().sum(0)) for p, t in self._compared(student, batch)]
        rows += [row for layer in self.layers for row in batch.teacher_sums(layer)]
        rows.append(torch.full_like(rows[0], batch.real_tokens.numel()))
        # added up where they are: one transfer at the end of an evaluation, not one for each layer of each batch
        self.sums = self.sums.to(rows[0].device) + torch.stack(rows)

    def _compared(
        self, student: StudentOutputs, batch: DistillationBatch
    ) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        return zip(self.loss.predictions(student), self.loss.targets(batch), strict=True)

    def _mean_squared_error(self, index: int) -> float:
        return float((self.sums[index] / self.sums[-1]).mean())

    def _r2(self, index: int) -> float:
        """R² of a pair; dimensions in which the teacher is constant do not count."""
        first = len(self.loss.pairs) + 2 * self.layers.index(self.loss.pairs[index].teacher)
        total = self.sums[first + 1] - self.sums[first].square() / self.sums[-1]
        varying = total > 1e-9 * self.sums[first + 1].clamp_min(1e-30)
        return float((1 - self.sums[index][varying] / total[varying]).mean())

    def metrics(self) -> dict[str, float]:
        """``loss`` of all mapped layers; of the last ``r2``, ``error``, 1 - R², and its loss; ``r2_layer_<layer>``."""
        self.sums = self.sums.cpu()
        pairs = self.loss.pairs
        errors = [self._mean_squared_error(index) for index in range(len(pairs))]
        # a layer that learns from several teacher layers is judged by the last of them
        by_layer = {f"r2_layer_{pair.student}": self._r2(index) for index, pair in enumerate(pairs)}
        last = max(range(len(pairs)), key=lambda index: pairs[index])
        r2 = self._r2(last)
        measured = {"loss": sum(errors) / len(errors), "r2": r2, "error": 1 - r2, "last_layer_loss": errors[last]}
        return measured | by_layer
