"""What a student says about one batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from ..students import KDNASForMaskedLM, KDNASForSequenceClassification, KDNASForTokenClassification, KDNASModel
from ..utils.decoders import DecoderInputs
from .batch import DistillationBatch
from .token_logits import decoder_inputs

TaskStudent = KDNASForSequenceClassification | KDNASForTokenClassification
Student = KDNASModel | KDNASForMaskedLM | TaskStudent


def encoder_of(model: Student) -> KDNASModel:
    """The encoder of a student, with or without a head."""
    return model if isinstance(model, KDNASModel) else model.kdnas


@dataclass(frozen=True)
class StudentOutputs:
    """What a student says about one batch; what several losses compare is computed once.

    ``hidden_states``, from the embeddings' output to the last layer's, are ``(batch, sequence, hidden_size)``,
    ``attention_maps`` of each layer, where asked for, ``(batch, heads, sequence, sequence)``.
    """

    model: Student
    batch: DistillationBatch
    hidden_states: tuple[torch.Tensor, ...]
    attention_maps: tuple[torch.Tensor, ...] | None = None

    @classmethod
    def read(cls, model: Student, batch: DistillationBatch, attention_maps: bool = False) -> StudentOutputs:
        """Let a student read a batch."""
        outputs = encoder_of(model)(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
            output_attentions=attention_maps,
        )
        return cls(model, batch, outputs.hidden_states, outputs.attentions if attention_maps else None)

    def states(self, layer: int) -> torch.Tensor:
        """States of a layer, counted from 1, at the real tokens: ``(tokens, hidden_size)``."""
        return self.batch.real(self.hidden_states[layer])

    @cached_property
    def task_logits(self) -> torch.Tensor:
        """Logits of a task's classes ``(labels, classes)`` of what has a label."""
        assert isinstance(self.model, KDNASForSequenceClassification | KDNASForTokenClassification)
        logits = self.model.classify(self.hidden_states[-1], self.batch.attention_mask)
        return logits.flatten(0, -2).index_select(0, self.batch.labeled)

    @cached_property
    def decoder(self) -> DecoderInputs:
        """What logits over the vocabulary are made from, at the masked tokens."""
        assert isinstance(self.model, KDNASForMaskedLM)
        states = self.hidden_states[-1].flatten(0, 1).index_select(0, self.batch.labeled)
        return decoder_inputs(self.model, states)
