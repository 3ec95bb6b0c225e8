"""Many students, one teacher pass: the candidates of an episode train together, each exactly as if it were alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..students import InheritedWordEmbeddings, KDNASConfig, KDNASModel, create_student, residual_basis
from .arguments import DistillationTrainingArguments
from .layer_mapping import describe_layer_mapping, resolve_layer_mapping
from .losses import ExplainedVariance, HiddenStateProjections, hidden_state_loss
from .teacher import Teacher

logger = logging.get_logger(__name__)


class PooledStudent(nn.Module):
    """One student of a pool with the projections that compare it with the teacher.

    Args:
        student: The encoder.
        projections: From its states to the teacher's.
    """

    def __init__(self, student: KDNASModel, projections: HiddenStateProjections) -> None:
        super().__init__()
        self.student = student
        self.projections = projections
        self.pairs = [(s, t) for s, teachers in projections.teacher_layers.items() for t in teachers]

    def predict(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, real_tokens: torch.Tensor
    ) -> list[torch.Tensor]:
        """Predict the teacher's states at the real tokens.

        Args:
            input_ids: ``(batch, sequence)``.
            attention_mask: ``(batch, sequence)``.
            real_tokens: ``(tokens,)``, positions of the unpadded tokens in the flattened batch.

        Returns:
            For each pair of `pairs`, ``(tokens, teacher_hidden_size)``.
        """
        outputs = self.student(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        predictions: list[torch.Tensor] = []
        for layer in self.projections.teacher_layers:
            states = outputs.hidden_states[layer].flatten(0, 1).index_select(0, real_tokens)
            predictions.extend(self.projections(layer, states))
        return predictions


class StudentPool(nn.Module):
    """Students that train together on one teacher pass.

    Their parameters are disjoint and the pool's loss is the sum of theirs, so the gradient of each is what it would be
    alone. A student whose loss is no longer finite is dropped; the others go on.

    Args:
        members: The students by name.

    Attributes:
        teacher_layers: Every teacher layer that some member learns from, in ascending order.
        dropped: Why each member that no longer trains was dropped.
    """

    # the loss is normalised over the whole accumulated batch by DistillationTrainer
    accepts_loss_kwargs = True

    def __init__(self, members: Mapping[str, PooledStudent]) -> None:
        super().__init__()
        if not members:
            raise ValueError("a pool needs at least one student.")
        self.members = nn.ModuleDict(members)
        self.dropped: dict[str, str] = {}
        self.teacher_layers = sorted({teacher for _, member in self.items() for _, teacher in member.pairs})

    @classmethod
    def create(
        cls,
        students: Mapping[str, KDNASConfig | KDNASModel],
        teacher: Teacher,
        args: DistillationTrainingArguments,
    ) -> StudentPool:
        """Build students and their projections.

        A student given as a configuration starts as ``args.student_init`` says, from a seed that depends on
        ``args.seed`` and the configuration alone: the same in any pool and at any place in it.

        Raises:
            ValueError: If a student does not fit the teacher or the layer mapping.
        """
        members = {}
        for name, given in students.items():
            config = given if isinstance(given, KDNASConfig) else given.config
            seed = _seed_of(config, args.seed)
            pairs = resolve_layer_mapping(args.layer_mapping, config.num_hidden_layers, teacher.dimensions.num_layers)
            logger.info(f"{name}: student<-teacher layers {describe_layer_mapping(pairs)}")
            if isinstance(given, KDNASConfig):
                embeddings = teacher.embeddings if args.student_init == "embeddings" else None
                student = create_student(given, embeddings, student_init=args.student_init, seed=seed)
            else:
                student = given
            basis = None
            # only a student that starts from the teacher's embeddings lives in their basis
            inherits = isinstance(student.get_input_embeddings(), InheritedWordEmbeddings)
            if args.projection_init == "basis" and inherits:
                basis = residual_basis(teacher.embeddings, config.hidden_size, teacher.dimensions.hidden_size)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + 1)
                projections = HiddenStateProjections(
                    pairs,
                    config.hidden_size,
                    teacher.dimensions.hidden_size,
                    shared=args.projection == "shared",
                    basis=basis,
                )
            members[name] = PooledStudent(student, projections)
        return cls(members)

    def items(self) -> Iterator[tuple[str, PooledStudent]]:
        """Names and members, dropped ones included."""
        for name, member in self.members.items():
            assert isinstance(member, PooledStudent)
            yield name, member

    @property
    def active(self) -> dict[str, PooledStudent]:
        """The members that still train."""
        return {name: member for name, member in self.items() if name not in self.dropped}

    @property
    def students(self) -> dict[str, KDNASModel]:
        """The encoders by name, dropped ones included."""
        return {name: member.student for name, member in self.items()}

    def drop(self, name: str, reason: str) -> None:
        """Stop training a member; its parameters stay as they are."""
        self.dropped[name] = reason
        logger.warning(f"{name} is dropped: {reason}")

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        targets: Mapping[int, torch.Tensor],
        real_tokens: torch.Tensor,
        num_tokens: torch.Tensor,
    ) -> torch.Tensor:
        """Losses of all members on one batch.

        Args:
            input_ids: ``(batch, sequence)``.
            attention_mask: ``(batch, sequence)``.
            targets: For each teacher layer ``(tokens, teacher_hidden_size)``.
            real_tokens: ``(tokens,)``, positions of the unpadded tokens in the flattened batch.
            num_tokens: Scalar that the summed errors are divided by.

        Returns:
            ``(members,)``, zero for dropped members.
        """
        losses = []
        for name, member in self.items():
            if name in self.dropped:
                losses.append(torch.zeros((), device=input_ids.device))
                continue
            predictions = member.predict(input_ids, attention_mask, real_tokens)
            losses.append(hidden_state_loss(predictions, [targets[t] for _, t in member.pairs], num_tokens))
        return torch.stack(losses)

    @torch.no_grad()
    def explained_variance(self, teacher_hidden_size: int) -> ExplainedVariance:
        """An accumulator for R² of every pair of layers of every active member; keys are ``(name, pair index)``."""
        keys = {
            (name, index): pair[1] for name, member in self.active.items() for index, pair in enumerate(member.pairs)
        }
        return ExplainedVariance(keys, teacher_hidden_size)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Trade computation for memory in every student (transformers 5)."""
        for student in self.students.values():
            student.activation_checkpointing_enable(
                activation_checkpointing_kwargs=activation_checkpointing_kwargs, **kwargs
            )

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Trade computation for memory in every student (transformers 4)."""
        for student in self.students.values():
            student.gradient_checkpointing_enable(gradient_checkpointing_kwargs=gradient_checkpointing_kwargs)


def _seed_of(config: KDNASConfig, seed: int) -> int:
    shape = (
        config.num_hidden_layers,
        config.num_attention_heads,
        config.hidden_size,
        config.intermediate_size,
        config.hidden_act,
        config.embedding_size,
    )
    digest = hashlib.sha256(f"{seed}:{shape}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
