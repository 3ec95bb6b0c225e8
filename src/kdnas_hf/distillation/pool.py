"""Many students, one teacher pass: the candidates of an episode train together, each exactly as if it were alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..students import (
    InheritedWordEmbeddings,
    KDNASConfig,
    KDNASForMaskedLM,
    KDNASForSequenceClassification,
    KDNASForTokenClassification,
    KDNASModel,
    add_masked_lm_head,
    create_student,
    residual_basis,
    train_only,
)
from .arguments import DistillationTrainingArguments
from .batch import DistillationBatch
from .layer_mapping import LayerPair, describe_layer_mapping, resolve_layer_mapping
from .losses import LOSS_SPECIFICATIONS, HiddenStateProjections, common_relation_heads
from .objectives import (
    AttentionMapObjective,
    HiddenStateObjective,
    LabelObjective,
    LogitObjective,
    MaskedLMObjective,
    Objective,
    PooledStudent,
    RelationObjective,
    SoftLabelObjective,
    Student,
)
from .task_head import TaskStudent, add_task_head, check_classes, check_labels, task_head_of
from .teacher import ATTENTION_INPUT, HIDDEN_STATES, Teacher

logger = logging.get_logger(__name__)


class StudentPool(nn.Module):
    """Students that train together on one teacher pass.

    Their parameters are disjoint and the pool's loss is the sum of theirs, so the gradient of each is what it would be
    alone. A student whose loss is no longer finite is dropped; the others go on.

    Args:
        members: The students by name.

    Attributes:
        teacher_layers: Every teacher layer whose states some member learns from, in ascending order.
        relation_layers: Every teacher layer whose queries, keys and values some member learns from.
        attention_layers: Every teacher layer whose attention maps some member learns from.
        loss_names: Every loss that some member learns by.
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
        objectives = [objective for _, member in self.items() for objective in member.objectives]
        self.teacher_layers = sorted({layer for objective in objectives for layer in objective.target_layers})
        self.relation_layers = sorted({layer for objective in objectives for layer in objective.relation_layers})
        self.attention_layers = sorted({layer for objective in objectives for layer in objective.attention_layers})
        self.loss_names = list(dict.fromkeys(objective.name for objective in objectives))

    @classmethod
    def create(
        cls,
        students: Mapping[str, KDNASConfig | KDNASModel | TaskStudent],
        teacher: Teacher,
        args: DistillationTrainingArguments,
    ) -> StudentPool:
        """Build students and their projections.

        A student given as a configuration starts as ``args.student_init`` says, from a seed that depends on
        ``args.seed`` and the configuration alone: the same in any pool and at any place in it.

        Raises:
            ValueError: If a student does not fit the teacher or the layer mapping, or the teacher lacks what a loss
                needs.
        """
        members = {}
        for name, given in students.items():
            _check_given(given, args)
            config = given if isinstance(given, KDNASConfig) else given.config
            seed = _seed_of(config, args.seed)
            pairs = resolve_layer_mapping(args.layer_mapping, config.num_hidden_layers, teacher.dimensions.num_layers)
            logger.info(f"{name}: student<-teacher layers {describe_layer_mapping(pairs)}")
            if isinstance(given, KDNASConfig):
                # layers are copied when there is text to fit them to, see `warm_start`
                start = "random" if args.student_init == "random" else "embeddings"
                embeddings = None if start == "random" else teacher.embeddings
                student = create_student(given, embeddings, student_init=start, seed=seed)
            else:
                student = given if isinstance(given, KDNASModel) else given.kdnas
            objectives = _objectives(args, pairs, config, teacher)
            projections = None
            if any(objective.target_layers for objective in objectives):
                projections = _projections(args, pairs, student, teacher, seed + 1)
            model: Student = student
            needs_task_head = any(LOSS_SPECIFICATIONS[objective.name].needs_task_head for objective in objectives)
            if needs_task_head:
                model = _with_task_head(given, student, teacher, "soft_labels" in args.loss_weights, seed + 2)
            elif any(LOSS_SPECIFICATIONS[objective.name].needs_masked_lm_head for objective in objectives):
                model = add_masked_lm_head(student, seed=seed + 2)
            members[name] = PooledStudent(model, objectives, projections, owns_model=isinstance(given, KDNASConfig))
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

    @property
    def models(self) -> dict[str, Student]:
        """What is saved of each member by name: the encoder, with its head if it has one."""
        return {name: member.model for name, member in self.items()}

    def drop(self, name: str, reason: str, warn: bool = True) -> None:
        """Stop training a member; its parameters stay as they are, and it costs nothing more."""
        self.dropped[name] = reason
        if warn:
            logger.warning(f"{name} is dropped: {reason}")

    @property
    def features(self) -> list[str]:
        """The teacher's vectors that its members learn from, named as `Teacher.features` takes them."""
        return [f"{HIDDEN_STATES}.{layer}" for layer in self.teacher_layers] + [
            f"{ATTENTION_INPUT}.{layer}" for layer in self.relation_layers
        ]

    @property
    def masks_tokens(self) -> bool:
        """Whether some loss needs text in which tokens are masked."""
        return any(LOSS_SPECIFICATIONS[name].masks_tokens for name in self.loss_names)

    @property
    def classifies(self) -> bool:
        """Whether some loss needs a task's labels."""
        return any(LOSS_SPECIFICATIONS[name].needs_task_head for name in self.loss_names)

    def train_only(self, occurring: Callable[[], torch.Tensor]) -> None:
        """Train only the word embeddings of the tokens that occur, see `OccurringWordEmbeddings`.

        Of students that were made for this pool, and of those that classify: the latter are mostly given, with the
        whole table of an earlier distillation.

        Args:
            occurring: Called if some student trains a table of its own; gives ``(tokens,)``.
        """
        # a head for masked tokens predicts every token, so that every row has a gradient
        students = [
            member.student
            for _, member in self.items()
            if (member.owns_model or member.classifies)
            and not isinstance(member.model, KDNASForMaskedLM)
            and not isinstance(member.student.get_input_embeddings(), InheritedWordEmbeddings)
        ]
        if students:
            tokens = occurring()
            for student in students:
                train_only(student, tokens)

    def forward(self, batch: DistillationBatch) -> torch.Tensor:
        """Losses of all members on one batch.

        Returns:
            ``(members,)``, the weighted sum of each member's losses; zero for dropped members.
        """
        losses = [
            torch.zeros((), device=batch.input_ids.device) if name in self.dropped else member.loss(batch)
            for name, member in self.items()
        ]
        return torch.stack(losses)

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


def _check_given(given: Any, args: DistillationTrainingArguments) -> None:
    """Refuse a student with a head that no loss trains."""
    if isinstance(given, KDNASConfig | KDNASModel):
        return
    has_task_head = isinstance(given, KDNASForSequenceClassification | KDNASForTokenClassification)
    if not (has_task_head and any(LOSS_SPECIFICATIONS[name].needs_task_head for name in args.loss_weights)):
        raise ValueError(
            f"model is a {type(given).__name__}; hidden-state distillation takes the encoder (KDNASModel), "
            "a KDNASConfig or a StudentPool; with the losses soft_labels or labels also a student with a head."
        )


def _objectives(
    args: DistillationTrainingArguments, pairs: Sequence[LayerPair], config: KDNASConfig, teacher: Teacher
) -> dict[Objective, float]:
    """The losses that the arguments name, for a student of this shape, with their weights."""
    made: dict[Objective, float] = {}
    for name, weight in args.loss_weights.items():
        objective: Objective
        if name in ("hidden_states", "cosine"):
            objective = HiddenStateObjective(name, pairs)
        elif name == "relations":
            layer = args.relation_teacher_layer or teacher.dimensions.num_layers
            wanted = args.relation_heads or teacher.dimensions.num_attention_heads
            heads = common_relation_heads(config.hidden_size, teacher.dimensions.hidden_size, wanted)
            objective = RelationObjective(layer, heads)
        elif name == "attention_maps":
            objective = AttentionMapObjective(pairs)
        elif name == "logits":
            objective = LogitObjective(args.temperature, args.vocabulary_chunk)
        elif name == "masked_lm":
            objective = MaskedLMObjective(args.vocabulary_chunk)
        else:
            objective = SoftLabelObjective(args.temperature) if name == "soft_labels" else LabelObjective()
        made[objective] = weight
    return made


def _with_task_head(
    given: KDNASConfig | KDNASModel | TaskStudent, student: KDNASModel, teacher: Teacher, needs_teacher: bool, seed: int
) -> TaskStudent:
    """The student with a head for the teacher's classes: its own, if it has one, else a new one."""
    has_head = isinstance(given, KDNASForSequenceClassification | KDNASForTokenClassification)
    if teacher.task_model is None and (needs_teacher or not has_head):
        raise ValueError(
            "losses: 'soft_labels', and 'labels' of a student without a head, need a teacher that was fine-tuned on "
            "the task; load it with load_teacher(…, task_head='sequence_classification' or 'token_classification')."
        )
    if teacher.task_model is not None:
        check_classes(teacher.task_model.config, "the teacher")
    if isinstance(given, KDNASForSequenceClassification | KDNASForTokenClassification):
        check_classes(given.config, "the student")
        if teacher.task_model is not None:
            check_labels(given, teacher.task_model.config)
            if task_head_of(given) != task_head_of(teacher.task_model):
                raise ValueError(
                    f"the student is a {type(given).__name__}, the teacher a {type(teacher.task_model).__name__}; both "
                    "must classify texts, or both tokens."
                )
        return given
    assert teacher.task_model is not None
    return add_task_head(student, teacher.task_model.config, task_head_of(teacher.task_model), seed)


def _projections(
    args: DistillationTrainingArguments, pairs: Sequence[LayerPair], student: KDNASModel, teacher: Teacher, seed: int
) -> HiddenStateProjections:
    basis = None
    # only a student that starts from the teacher's embeddings lives in their basis
    inherits = isinstance(student.get_input_embeddings(), InheritedWordEmbeddings)
    hidden_size, teacher_hidden_size = student.config.hidden_size, teacher.dimensions.hidden_size
    if args.projection_init != "random" and inherits:
        basis = residual_basis(teacher.embeddings, hidden_size, teacher_hidden_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HiddenStateProjections(
            pairs, hidden_size, teacher_hidden_size, shared=args.projection == "shared", basis=basis
        )


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
