"""Targets: what students learn from, for any batch, computed by the teacher or read where the batch carries it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.accelerator import Accelerator

from .batch import DistillationBatch
from .statistics import HiddenStateStatistics
from .teacher import Teacher
from .teacher_outputs import Required, TeacherOutputs

STORED = "teacher"  # the column of stored targets, see `StoredTargets`


class Targets:
    """The teacher's outputs for a batch, standardized; who asks need not know whether they were stored.

    Args:
        teacher: The teacher.
        required: What students learn from.
        dtype: What the teacher computes in; by default that of its weights.
        accelerator: Of several processes that have the same batches: each computes a share of the texts, and all get
            the outputs of all. None where each process has texts of its own.
    """

    def __init__(
        self,
        teacher: Teacher,
        required: Required,
        dtype: torch.dtype | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.teacher = teacher
        self.required = required
        self.dtype = dtype
        self.accelerator = accelerator if accelerator is not None and accelerator.num_processes > 1 else None
        self.statistics: HiddenStateStatistics | None = None

    def raw(self) -> Targets:
        """The same, as the teacher gives them."""
        targets = copy.copy(self)
        targets.statistics = None
        return targets

    def __call__(self, inputs: Mapping[str, Any], batch: DistillationBatch, masked_text: bool = False) -> None:
        """Set ``batch.teacher``.

        Args:
            inputs: Of the data loader: the stored outputs are under `STORED`, if there are any.
            batch: The batch.
            masked_text: Whether its tokens are masked for their prediction alone, as in an evaluation.
        """
        required = self.required
        if masked_text:
            required = Required(token_logits=required.token_logits)
        elif batch.labels is None:  # in whole texts there is no masked token to predict
            required = dataclasses.replace(required, token_logits=False)
        # a copy: the batch that was loaded stays as it is
        outputs = copy.copy(inputs[STORED]) if STORED in inputs else self._compute(batch, required)
        states = {layer: outputs.hidden_states[layer] for layer in required.hidden_states}
        if self.statistics is None:
            outputs.hidden_states = {layer: values.float() for layer, values in states.items()}
        else:
            outputs.hidden_states = {n: self.statistics.standardize(n, values) for n, values in states.items()}
        batch.teacher = outputs

    def _compute(self, batch: DistillationBatch, required: Required) -> TeacherOutputs:
        if not required:
            return TeacherOutputs()
        if self.accelerator is None or required.token_logits:
            masked = batch.labeled if required.token_logits else None
            return self.teacher(batch.input_ids, batch.attention_mask, required, self.dtype, masked)
        accelerator, texts = self.accelerator, len(batch.input_ids)
        share = -(-texts // accelerator.num_processes)
        # all have equally many, as gathering needs: the last ones read the last text again
        rows = torch.arange(share, device=batch.input_ids.device) + accelerator.process_index * share
        rows = rows.clamp_max(texts - 1)
        outputs = self.teacher(batch.input_ids[rows], batch.attention_mask[rows], required, self.dtype)
        return outputs.apply(lambda own: accelerator.gather(own.contiguous())[:texts])
