"""What each named loss needs of teacher and student, and how it is taken from a batch.

The mathematics is in `losses/`, one file for each loss; here it meets a student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..students import KDNASForMaskedLM, KDNASForSequenceClassification, KDNASForTokenClassification, KDNASModel
from .batch import DistillationBatch
from .layer_mapping import LayerPair
from .losses import (
    HiddenStateProjections,
    attention_map_loss,
    cosine_loss,
    decoder_inputs,
    hidden_state_loss,
    label_loss,
    logit_loss,
    masked_lm_loss,
    relation_loss,
    soft_label_loss,
)

Student = KDNASModel | KDNASForMaskedLM | KDNASForSequenceClassification | KDNASForTokenClassification


@dataclass(frozen=True)
class StudentOutputs:
    """What a student says about one batch.

    Attributes:
        model: The student, with its head if it has one.
        hidden_states: From the embeddings' output to the last layer's, each ``(batch, sequence, hidden_size)``.
        predictions: For each pair of mapped layers the projected states ``(tokens, teacher_hidden_size)``.
        attention_maps: Probabilities ``(batch, heads, sequence, sequence)`` of each layer, where they were asked for.
    """

    model: Student
    hidden_states: tuple[torch.Tensor, ...]
    predictions: list[torch.Tensor]
    attention_maps: tuple[torch.Tensor, ...] | None = None


class Objective:
    """A loss by its name: what it needs, and its value for a student on a batch.

    Attributes:
        name: Its name in ``--losses``, in logs and in metrics.
        target_layers: Teacher layers whose states it compares.
        relation_layers: Teacher layers whose queries, keys and values it compares.
        attention_layers: Teacher layers whose attention maps it compares.
    """

    name: str
    target_layers: Sequence[int] = ()
    relation_layers: Sequence[int] = ()
    attention_layers: Sequence[int] = ()

    def __call__(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        """The loss, a float32 scalar: summed over tokens and divided by ``batch.num_tokens``."""
        raise NotImplementedError


class HiddenStateObjective(Objective):
    """Projected states against the teacher's, by their squared error or their angle."""

    def __init__(self, name: str, pairs: Sequence[tuple[int, int]]) -> None:
        self.name = name
        self.target_layers = [teacher for _, teacher in pairs]
        self.loss = cosine_loss if name == "cosine" else hidden_state_loss

    def __call__(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        """See `Objective`."""
        return self.loss(student.predictions, [batch.targets[t] for t in self.target_layers], batch.num_tokens)


class RelationObjective(Objective):
    """Relations among the queries, keys and values of the student's last layer, against those of a teacher layer."""

    name = "relations"

    def __init__(self, teacher_layer: int, relation_heads: int) -> None:
        self.relation_layers = [teacher_layer]
        self.relation_heads = relation_heads

    def __call__(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        """See `Objective`."""
        encoder = _encoder(student.model)
        attention = encoder.encoder.layer[-1].attention.self  # type: ignore[union-attr]
        # made once more from the layer's input rather than caught on the way: that would miss the gradient where
        # activations are recomputed, and these three maps of one layer cost little
        states = student.hidden_states[-2]
        relations = [attention.query(states), attention.key(states), attention.value(states)]  # type: ignore[operator, union-attr]
        return relation_loss(
            relations,
            batch.relations[self.relation_layers[0]],
            batch.attention_mask,
            self.relation_heads,
            batch.num_tokens,
        )


class AttentionMapObjective(Objective):
    """The student's attention probabilities against those of the mapped teacher layers."""

    name = "attention_maps"

    def __init__(self, pairs: Sequence[LayerPair]) -> None:
        self.pairs = list(pairs)
        self.attention_layers = [pair.teacher for pair in pairs]

    def __call__(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        """See `Objective`."""
        assert student.attention_maps is not None
        return attention_map_loss(
            [student.attention_maps[pair.student - 1] for pair in self.pairs],
            [batch.attention_maps[pair.teacher] for pair in self.pairs],
            batch.attention_mask,
            batch.num_tokens,
        )


class LogitObjective(Objective):
    """The student's distribution over the vocabulary at masked tokens against the teacher's, softened."""

    name = "logits"

    def __init__(self, temperature: float, chunk_size: int) -> None:
        self.temperature = temperature
        self.chunk_size = chunk_size

    def __call__(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        """See `Objective`."""
        assert batch.teacher_decoder is not None
        assert batch.num_labels is not None
        return logit_loss(
            *_masked_decoder_inputs(student, batch),
            *batch.teacher_decoder,
            temperature=self.temperature,
            num_tokens=batch.num_labels,
            chunk_size=self.chunk_size,
        )


class MaskedLMObjective(Objective):
    """Plain masked language modeling: what a student learns without a teacher."""

    name = "masked_lm"

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size

    def __call__(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        """See `Objective`."""
        assert batch.labels is not None
        assert batch.num_labels is not None
        return masked_lm_loss(
            *_masked_decoder_inputs(student, batch),
            labels=batch.labels.flatten()[batch.masked_tokens],
            num_tokens=batch.num_labels,
            chunk_size=self.chunk_size,
        )


class SoftLabelObjective(Objective):
    """The student's distribution over a task's classes against the teacher's, softened, of all that is labelled."""

    name = "soft_labels"

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        """See `Objective`."""
        assert batch.task_logits is not None
        assert batch.num_labels is not None
        teacher = batch.task_logits.flatten(0, -2).index_select(0, batch.labelled)
        return soft_label_loss(task_logits(student, batch), teacher, self.temperature, batch.num_labels)


class LabelObjective(Objective):
    """A task's labels themselves."""

    name = "labels"

    def __call__(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        """See `Objective`."""
        assert batch.labels is not None
        assert batch.num_labels is not None
        return label_loss(task_logits(student, batch), batch.labels.flatten()[batch.labelled], batch.num_labels)


def task_logits(student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
    """The student's logits ``(labels, classes)`` of what has a label."""
    states = student.hidden_states[-1]
    if isinstance(student.model, KDNASForSequenceClassification):
        return student.model.classifier(states.index_select(0, batch.labelled))
    assert isinstance(student.model, KDNASForTokenClassification)
    return student.model.classifier(student.model.dropout(states.flatten(0, 1).index_select(0, batch.labelled)))


def _encoder(model: Student) -> KDNASModel:
    return model if isinstance(model, KDNASModel) else model.kdnas


def _masked_decoder_inputs(
    student: StudentOutputs, batch: DistillationBatch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    assert isinstance(student.model, KDNASForMaskedLM)
    states = student.hidden_states[-1].flatten(0, 1).index_select(0, batch.masked_tokens)
    return decoder_inputs(student.model, states)


class PooledStudent(nn.Module):
    """One student of a pool with what it learns by.

    Args:
        model: The student; with the head that a loss needs.
        objectives: Its losses with their weights.
        projections: From its states to the teacher's; None where no loss compares states.
        owns_model: Whether the model was made for this pool, so that its modules may be replaced.
    """

    def __init__(
        self,
        model: Student,
        objectives: Mapping[Objective, float],
        projections: HiddenStateProjections | None,
        owns_model: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.objectives = dict(objectives)
        self.projections = projections
        self.owns_model = owns_model
        self.started = False  # whether it was fitted to the teacher, or trained, already
        layers = {} if projections is None else projections.teacher_layers
        self.pairs = [LayerPair(s, t) for s, teachers in layers.items() for t in teachers]

    @property
    def student(self) -> KDNASModel:
        """The encoder."""
        return _encoder(self.model)

    @property
    def classifies(self) -> bool:
        """Whether it has a head for a task's classes."""
        return isinstance(self.model, KDNASForSequenceClassification | KDNASForTokenClassification)

    def forward(self, batch: DistillationBatch) -> StudentOutputs:
        """Read a batch."""
        maps = any(objective.attention_layers for objective in self.objectives)
        outputs = self.student(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
            output_attentions=maps,
        )
        predictions: list[torch.Tensor] = []
        if self.projections is not None:
            for layer in self.projections.teacher_layers:
                states = outputs.hidden_states[layer].flatten(0, 1).index_select(0, batch.real_tokens)
                predictions.extend(self.projections(layer, states))
        return StudentOutputs(self.model, outputs.hidden_states, predictions, outputs.attentions if maps else None)

    def losses(self, outputs: StudentOutputs, batch: DistillationBatch) -> dict[str, torch.Tensor]:
        """Each of its losses by name, not yet weighted."""
        return {objective.name: objective(outputs, batch) for objective in self.objectives}

    def loss(self, batch: DistillationBatch) -> torch.Tensor:
        """The weighted sum of its losses on a batch, a float32 scalar."""
        losses = self.losses(self(batch), batch)
        return torch.stack([weight * losses[o.name] for o, weight in self.objectives.items()]).sum()
