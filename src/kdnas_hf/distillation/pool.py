"""Many students, one teacher pass: the candidates of an episode train together, each exactly as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ..data.batching import occurring_tokens
from ..students import (
    InheritedWordEmbeddings,
    KDNASConfig,
    KDNASForMaskedLM,
    KDNASModel,
    OccurringWordEmbeddings,
    add_masked_lm_head,
    basis_of,
    fold_embeddings,
    train_only,
)
from ..students.task_heads import with_task_head
from ..utils.processes import balanced_shares
from ..utils.random_state import seed_of
from .arguments import DistillationTrainingArguments
from .layer_mapping import describe_layer_mapping, resolve_layer_mapping
from .losses import LOSSES, LossSetting
from .member import Member
from .student_outputs import Student, TaskStudent, encoder_of
from .teacher import MASKED_LM, Teacher
from .teacher_outputs import Required

logger = logging.get_logger(__name__)

# the fields of a configuration that decide what a student is drawn from
_SHAPE = (
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "intermediate_size",
    "hidden_act",
    "embedding_size",
)


class StudentPool(nn.Module):
    """Students that train on one teacher pass, each by steps of its own.

    With several processes, each has a share of the students (``members``, of all ``names``) and reads the whole batch;
    a single student is in all of them, and each reads a share of the batch.

    Attributes:
        dropped: Why each student that no longer trains was dropped, as far as this process knows.
        measured: Metrics of the last evaluation on held-out text, by student; of all processes.
        required: The teacher outputs that any student of any process learns from.
    """

    # the loss is normalized over the whole accumulated batch by DistillationTrainer
    accepts_loss_kwargs = True

    def __init__(
        self, members: Mapping[str, Member], names: list[str] | None = None, required: Required | None = None
    ) -> None:
        super().__init__()
        self.names = list(members) if names is None else names
        if not self.names:
            raise ValueError("a pool needs at least one student.")
        self.members = nn.ModuleDict(members)
        self.dropped: dict[str, str] = {}
        self.measured: dict[str, dict[str, float]] = {}
        if required is None:
            required = Required()
            for _, member in self.items():
                required |= member.required
        self.required = required
        self.losses = [LOSSES[name] for name in dict.fromkeys(n for _, member in self.items() for n in member.weights)]

    @classmethod
    def create(
        cls,
        students: Mapping[str, KDNASConfig | KDNASModel | TaskStudent],
        teacher: Teacher,
        args: DistillationTrainingArguments,
    ) -> StudentPool:
        """Build the students of this process and their losses.

        A student given as a configuration starts from a seed that depends on ``args.seed`` and its shape alone.

        Raises:
            ValueError: If a student does not fit the teacher or the layer mapping, or the teacher lacks an output.
        """
        own = divide(students, args.world_size)[args.process_index]
        members = {name: _make_member(name, students[name], teacher, args) for name in own}
        required = Required()
        for given in students.values():
            required |= required_by(args, teacher, [_config(given).num_hidden_layers])
        pool = cls(members, list(students), required)
        pool.losses = [LOSSES[name] for name in args.loss_weights]
        return pool

    def items(self) -> Iterator[tuple[str, Member]]:
        """Names and members of this process, dropped ones included."""
        for name, member in self.members.items():
            assert isinstance(member, Member)
            yield name, member

    @property
    def active(self) -> dict[str, Member]:
        """The members of this process that still train."""
        return {name: member for name, member in self.items() if name not in self.dropped}

    @property
    def students(self) -> dict[str, KDNASModel]:
        """The encoders of this process by name, dropped ones included."""
        return {name: member.student for name, member in self.items()}

    @property
    def models(self) -> dict[str, Student]:
        """What is saved of each member of this process by name: the encoder, with its head if it has one."""
        return {name: member.model for name, member in self.items()}

    @property
    def divided(self) -> bool:
        """Whether several students are divided among processes; else each process has them all."""
        return len(self.names) > 1

    def drop(self, name: str, reason: str, warn: bool = True) -> None:
        """Stop training a student; its parameters stay as they are, and it costs nothing more."""
        self.dropped[name] = reason
        if name in self.members:
            self.members[name].forget_gradient()  # type: ignore[operator, union-attr]
        if warn:
            logger.warning(f"{name} is dropped: {reason}")

    @property
    def masks_tokens(self) -> bool:
        """Whether some loss needs text in which tokens are masked."""
        return any(loss.masks_tokens for loss in self.losses)

    @property
    def labeled_losses(self) -> list[str]:
        """The losses that read a task's labels."""
        return [loss.name for loss in self.losses if loss.uses_labels]

    @property
    def classifies(self) -> bool:
        """Whether some loss needs a task's labels."""
        return bool(self.labeled_losses)

    @property
    def storable(self) -> bool:
        """Whether the targets of all losses depend on the text alone."""
        return bool(self.required) and all(loss.storable for loss in self.losses)

    def train_only_occurring(self, texts: Any) -> None:
        """Train only the word embeddings of the tokens that occur in some texts, see `OccurringWordEmbeddings`.

        Of students that were made for this pool, and of those that classify: the latter are mostly given, with the
        whole table of an earlier distillation. A head for masked tokens predicts every token.
        """
        students = [
            member.student
            for _, member in self.items()
            if (not member.given or isinstance(member.model, TaskStudent))
            and not isinstance(member.model, KDNASForMaskedLM)
            and not isinstance(member.student.get_input_embeddings(), InheritedWordEmbeddings)
        ]
        if students and texts is not None and has_length(texts):
            tokens = occurring_tokens(texts)
            for student in students:
                train_only(student, tokens)

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Trade computation for memory in every student (as transformers 5 asks for it)."""
        for student in self.students.values():
            student.activation_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Trade computation for memory in every student (as transformers 4 asks for it)."""
        for student in self.students.values():
            student.gradient_checkpointing_enable(*args, **kwargs)


def divide(students: Mapping[str, KDNASConfig | KDNASModel | TaskStudent], processes: int) -> list[list[str]]:
    """The students of each process: shares of about equal cost, or the only student in all of them."""
    if len(students) == 1:
        return [list(students)] * processes
    return balanced_shares({name: _cost(given) for name, given in students.items()}, processes)


def _cost(given: KDNASConfig | KDNASModel | TaskStudent) -> float:
    """Parameters of the layers, to which the time of a step is about proportional."""
    config = _config(given)
    return sum(4 * config.hidden_size**2 + 2 * config.hidden_size * ffn for ffn in config.intermediate_sizes_per_layer)


def required_by(args: DistillationTrainingArguments, teacher: Teacher, depths: list[int]) -> Required:
    """The teacher outputs that students of some depths learn from, by the losses of the arguments.

    Raises:
        ValueError: If the layer mapping does not fit a depth, or the teacher lacks what a loss needs.
    """
    required = Required()
    for depth in depths:
        pairs = resolve_layer_mapping(args.layer_mapping, depth, teacher.dimensions.num_layers)
        for name in args.loss_weights:
            required |= LOSSES[name].requires(args, pairs, teacher)
    return required


def _config(given: KDNASConfig | KDNASModel | TaskStudent) -> KDNASConfig:
    return given if isinstance(given, KDNASConfig) else given.config


def _make_member(
    name: str, given: KDNASConfig | KDNASModel | TaskStudent, teacher: Teacher, args: DistillationTrainingArguments
) -> Member:
    if not isinstance(given, KDNASConfig | KDNASModel | TaskStudent | KDNASForMaskedLM):
        raise ValueError(
            f"model is a {type(given).__name__}; distillation takes a KDNASConfig, a KDNASModel, or a student with a "
            "head for classes."
        )
    classes = [LOSSES[loss] for loss in args.loss_weights]
    config = _config(given)
    seed = seed_of(args.seed, *(getattr(config, name) for name in _SHAPE)) % 2**32
    pairs = resolve_layer_mapping(args.layer_mapping, config.num_hidden_layers, teacher.dimensions.num_layers)
    logger.info(f"{name}: student<-teacher layers {describe_layer_mapping(pairs)}")
    if isinstance(given, KDNASConfig):
        student = args.start.make(given, teacher.model, teacher.embeddings, seed)
    else:
        student = encoder_of(given)
        if isinstance(student.get_input_embeddings(), OccurringWordEmbeddings):  # those of an earlier text
            fold_embeddings(given)
    heads = {loss.student_head for loss in classes} - {None}
    model: Student = student
    if "task" in heads:
        model = with_task_head(given, student, teacher.task_model, seed + 2)
    elif isinstance(given, TaskStudent):
        raise ValueError(
            f"model is a {type(given).__name__}, and none of losses={' '.join(args.loss_weights)} trains its head; "
            "give its encoder (.kdnas), or add a loss on labels."
        )
    if MASKED_LM in heads:
        model = given if isinstance(given, KDNASForMaskedLM) else add_masked_lm_head(student, seed=seed + 2)
    basis = basis_of(student, teacher.embeddings, teacher.dimensions.hidden_size)
    losses = {
        loss.name: loss(LossSetting(args, student, teacher, pairs, basis, seed + 3 + number))
        for number, loss in enumerate(classes)
    }
    return Member(model, losses, args.loss_weights, seed, given=not isinstance(given, KDNASConfig))
