"""What a pool's students are worth on held-out text."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .batch import DistillationBatch
from .losses import LOSS_SPECIFICATIONS, ExplainedVariance
from .objectives import PooledStudent, StudentOutputs, task_logits
from .pool import StudentPool


class HeldoutMeasures:
    """Sums over held-out batches of each student's losses and explained variance.

    Args:
        pool: The students; those that were dropped are left out.
        teacher_hidden_size: H_T.
    """

    def __init__(self, pool: StudentPool, teacher_hidden_size: int) -> None:
        self.members = pool.active
        keys = {
            (name, index): pair.teacher
            for name, member in self.members.items()
            for index, pair in enumerate(member.pairs)
        }
        self.variance = ExplainedVariance(keys, teacher_hidden_size) if keys else None
        # the squared error of states is in the variance already
        self.keys = [
            (name, objective.name)
            for name, member in self.members.items()
            for objective in member.objectives
            if objective.name != "hidden_states"
        ]
        # right answers of those that classify, behind the losses
        classifying = [name for name, member in self.members.items() if member.classifies]
        self.right = {name: len(self.keys) + number for number, name in enumerate(classifying)}
        self.sums = torch.zeros(len(self.keys) + len(self.right), dtype=torch.float64)
        # real tokens, and what has a label: masked tokens, or a task's texts or tokens
        self.counts = torch.zeros(2, dtype=torch.float64)

    @torch.no_grad()
    def add(self, batch: DistillationBatch, masked: DistillationBatch | None) -> None:
        """Count a batch, and the same batch with masked tokens for the losses that need these.

        Both are given with ``num_tokens`` and ``num_labels`` of 1, so that their losses are sums.
        """
        self.counts[0] += batch.real_tokens.numel()
        if batch.labels is not None and self.right:
            self.counts[1] += batch.labelled.numel()
        if self.variance is not None:
            self.variance.add_targets(batch.targets)
        if masked is not None:
            self.counts[1] += masked.masked_tokens.numel()
        for name, member in self.members.items():
            outputs = member(batch)
            if self.variance is not None:
                for index, prediction in enumerate(outputs.predictions):
                    self.variance.add_prediction((name, index), prediction, batch.targets[member.pairs[index].teacher])
            self._add_losses(name, member, outputs, batch, masks_tokens=False)
            if name in self.right:
                assert batch.labels is not None
                predicted = task_logits(outputs, batch).argmax(-1)
                self.sums[self.right[name]] += float((predicted == batch.labels.flatten()[batch.labelled]).sum())
            if masked is not None:
                self._add_losses(name, member, member(masked), masked, masks_tokens=True)

    def _add_losses(
        self, name: str, member: PooledStudent, outputs: StudentOutputs, batch: DistillationBatch, masks_tokens: bool
    ) -> None:
        for objective in member.objectives:
            key = (name, objective.name)
            if key in self.keys and LOSS_SPECIFICATIONS[objective.name].masks_tokens == masks_tokens:
                self.sums[self.keys.index(key)] += float(objective(outputs, batch))

    def reduce(self, add_up: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Add up what all processes counted."""
        self.sums, self.counts = add_up(self.sums), add_up(self.counts)
        if self.variance is not None:
            self.variance.sums, self.variance.tokens = add_up(self.variance.sums), add_up(self.variance.tokens)

    def metrics(self, name: str) -> dict[str, float]:
        """A student's measures.

        Returns:
            ``<loss>_loss`` of each of its losses beside ``hidden_states``; where its states are compared, ``r2`` and
            ``last_layer_loss`` of the last mapped layer, and ``r2_layer_<student layer>``; ``loss``, the mean squared
            error of all mapped layers if there is one, else the weighted sum of its losses; ``accuracy`` of those that
            classify.
        """
        member = self.members[name]
        found = {
            f"{loss}_loss": float(value / self.counts[int(_counts_labels(loss))])
            for (owner, loss), value in zip(self.keys, self.sums[: len(self.keys)], strict=True)
            if owner == name
        }
        if name in self.right:
            found["accuracy"] = float(self.sums[self.right[name]] / self.counts[1])
        if self.variance is None or not member.pairs:
            weighted = [weight * found[f"{objective.name}_loss"] for objective, weight in member.objectives.items()]
            return {"loss": sum(weighted)} | found
        errors = [self.variance.mean_squared_error((name, index)) for index in range(len(member.pairs))]
        for index, pair in enumerate(member.pairs):
            # a layer that learns from several teacher layers is judged by the last of them
            found[f"r2_layer_{pair.student}"] = self.variance.r2((name, index))
        last = max(range(len(member.pairs)), key=lambda index: member.pairs[index])
        found["r2"] = self.variance.r2((name, last))
        found["last_layer_loss"] = errors[last]
        return {"loss": sum(errors) / len(errors)} | found


def _counts_labels(loss: str) -> bool:
    """Whether a loss is a mean over labels, and not over all real tokens."""
    specification = LOSS_SPECIFICATIONS[loss]
    return specification.masks_tokens or specification.needs_task_head
