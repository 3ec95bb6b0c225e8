"""What a pool's students are worth on held-out text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from .arguments import DistillationTrainingArguments
from .batch import DistillationBatch
from .member import Member
from .pool import StudentPool


class HeldoutEvaluation(Trainer):
    """The part of `DistillationTrainer` that measures students on held-out text."""

    args: DistillationTrainingArguments
    pool: StudentPool

    @torch.no_grad()
    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """What the losses measure of each student on held-out text, exact over all processes."""
        trainer = cast(Any, self)
        trainer._share_dropped()
        samples = 0

        def batches() -> Iterator[tuple[DistillationBatch, DistillationBatch | None]]:
            nonlocal samples
            one = torch.ones((), device=self.args.device)  # what is measured is summed, and divided at the end
            counts = {"num_tokens": one, "num_texts": one, "num_labels": one}
            for number, loaded in enumerate(dataloader):
                inputs = self._prepare_inputs(dict(loaded))
                samples += inputs["input_ids"].shape[0]
                masked = None
                if trainer.masking is not None:  # states are compared on whole texts, predictions on masked ones
                    tokens = trainer._mask(inputs, "eval", trainer._own_texts, number)
                    masked = trainer._batch(inputs | tokens, counts, masked_text=True)
                yield trainer._batch(inputs, counts), masked

        measured = self._measure_members(batches())
        if self.pool.divided:
            measured = {name: values for part in gather_object([measured]) for name, values in part.items()}
        self.pool.measured = measured
        metrics: dict[str, float] = {}
        for name in (name for name in self.pool.names if name in measured):
            prefix = metric_key_prefix if not self.pool.divided else f"{metric_key_prefix}_{name}"
            metrics |= {f"{prefix}_{key}": value for key, value in measured[name].items()}
        if measured:
            metrics[f"{metric_key_prefix}_loss"] = sum(v["loss"] for v in measured.values()) / len(measured)
            metrics[f"{metric_key_prefix}_trained_tokens"] = trainer.trained_tokens
        else:
            self.control.should_training_stop = True
        samples = int(trainer._sum_over_texts(torch.tensor([samples])))
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=samples)

    def _measure_members(
        self, batches: Iterator[tuple[DistillationBatch, DistillationBatch | None]]
    ) -> dict[str, dict[str, float]]:
        """What the losses measure of each member of this process that was not dropped, in eval mode.

        Args:
            batches: Batches whose losses are sums, each with the same text with masked tokens where losses need it.
        """
        was_training = self.pool.training
        self.pool.eval()
        members = self.pool.active
        measures = {name: [loss.measure() for loss in member.all_losses()] for name, member in members.items()}
        for both in batches:
            for name, member in members.items():
                for part, masks in zip(both, (False, True), strict=True):
                    wanted = [measure for measure in measures[name] if measure.loss.masks_tokens == masks]
                    if wanted and part is not None:
                        with self.accelerator.autocast():
                            outputs = member(part)
                            for measure in wanted:
                                measure.add(outputs, part)
        self.pool.train(was_training)
        for measure in (measure for own in measures.values() for measure in own):
            measure.sums = cast(Any, self)._sum_over_texts(measure.sums)
        return {
            name: _metrics(member, {measure.loss.name: measure.metrics() for measure in measures[name]})
            for name, member in members.items()
        }

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether this is the best evaluation so far; it is not if the student whose metric decides was dropped."""
        key = f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"
        if self.pool.dropped and key not in metrics:
            return False
        return super()._determine_best_metric(metrics, trial)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Raise ValueError: a distillation measures students and makes no predictions."""
        raise ValueError(
            "predict is not supported by DistillationTrainer, which measures students and makes no predictions; call "
            "the student, or a transformers pipeline with it."
        )


def _metrics(member: Member, by_loss: dict[str, dict[str, float]]) -> dict[str, float]:
    """``loss``, the weighted sum; ``error``, the weighted mean; ``<loss>_loss`` of each, and what else it gives."""
    metrics: dict[str, float] = {}
    for name, values in by_loss.items():
        metrics |= {key: value for key, value in values.items() if key not in ("loss", "error")}
        metrics[f"{name}_loss"] = values["loss"]
    weights = member.weights
    loss = sum(weights[name] * values["loss"] for name, values in by_loss.items())
    error = sum(weights[name] * values["error"] for name, values in by_loss.items()) / sum(weights.values())
    return {"loss": loss, "error": error} | metrics
