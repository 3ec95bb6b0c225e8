"""Where a student starts: at copies of its teacher's layers, in its teacher's embeddings, or at random."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..utils.choices import check_choice
from .configuration_kdnas import KDNASConfig
from .inheritance import InheritedWordEmbeddings, TeacherEmbeddings, create_student, residual_basis
from .layer_copying import check_copyable, copy_layers
from .modeling_kdnas import KDNASModel

STUDENT_INITS = ("auto", "layers", "embeddings", "random")


@dataclass(frozen=True)
class Start:
    """Where students start.

    Attributes:
        init: ``layers``, exact copies of layers of a teacher of their width; ``embeddings``, its embeddings in their
            principal basis; ``random``; or ``auto``: layers where they have their teacher's width, else embeddings.
        layers: The teacher layers, from 1, that are copied; by default `default_layers`.
        named: What errors call the layers.

    Raises:
        ValueError: If ``init`` is unknown, or ``layers`` are not layers or do not go with it.
    """

    init: str = "auto"
    layers: Sequence[int] | None = None
    named: str = "student_layers"

    def __post_init__(self) -> None:
        check_choice("student_init", self.init, STUDENT_INITS)
        if self.layers is None:
            return
        if self.init not in ("auto", "layers"):
            raise ValueError(
                f"{self.named}={self.layers} go with student_init=layers, not {self.init}; leave one of them out."
            )
        if not self.layers or any(not isinstance(layer, int) or layer < 1 for layer in self.layers):
            raise ValueError(f"{self.named}={self.layers} are not layers of the teacher, counted from 1, as '1 6'.")

    def of(self, config: KDNASConfig) -> Start:
        """The start of a student: the teacher layers that its configuration names are copied rather than these."""
        layers = config.teacher_layers
        return self if layers is None else Start(self.init, layers, "teacher_layers")

    def check(self, teacher_size: int, teacher_layers: int, shapes: Iterable[tuple[int, int]]) -> None:
        """Refuse what a teacher cannot give to students of some hidden sizes and depths, before it is loaded.

        Raises:
            ValueError: If a layer does not exist, their number is not the student's, or a width is not the teacher's.
        """
        layers = self.layers
        wrong = [layer for layer in layers or [] if layer > teacher_layers]
        if wrong:
            raise ValueError(
                f"{self.named}={layers}: the teacher has layers 1 to {teacher_layers}, so that there is no {wrong[0]}."
            )
        for hidden_size, depth in shapes:
            if layers and len(layers) != depth:
                raise ValueError(
                    f"{self.named}={layers} names {len(layers)} layers for a student of {depth}; name one for each, "
                    "or leave it out."
                )
            if (layers or self.init == "layers") and hidden_size != teacher_size:
                raise ValueError(
                    f"hidden_size={hidden_size} cannot start as copies of layers of a teacher of hidden size "
                    f"{teacher_size}; choose student_init=embeddings without {self.named}, or "
                    f"hidden_size={teacher_size}."
                )

    def make(
        self, config: KDNASConfig, teacher: PreTrainedModel, embeddings: TeacherEmbeddings | None, seed: int
    ) -> KDNASModel:
        """Make a student that has not learned yet.

        Args:
            config: The student's shape.
            teacher: The teacher's encoder.
            embeddings: What students inherit; may be None for a random start.
            seed: Decides all random values.

        Raises:
            ValueError: If the start is one that the student or the teacher does not allow.
        """
        size, depth = teacher.config.hidden_size, teacher.config.num_hidden_layers
        start = self.of(config)
        init = self.init
        if init in ("auto", "layers"):
            start.check(size, depth, [(config.hidden_size, config.num_hidden_layers)])
        if init == "auto":
            exact = config.hidden_size == config.word_embedding_size == size
            init = "layers" if start.layers or (exact and _copyable(teacher)) else "embeddings"
        if init == "random":
            return create_student(config, None, student_init="random", seed=seed)
        student = create_student(config, embeddings, student_init="embeddings", seed=seed)
        if init == "layers":
            copied = start.layers or default_layers(config.num_hidden_layers, depth)
            copy_layers(student, dict(enumerate(copied, start=1)), teacher)
        return student


def default_layers(depth: int, teacher_layers: int) -> list[int]:
    """The teacher layers that a student's layers start as copies of, unless they are named.

    The middle layer of each of ``depth`` equal blocks, halves rounded up: 3, 7 and 11 of 12 for a student of three.
    Even spacing that ends at the last layer, as is usual, starts worse (docs/distillation.md).
    """
    places = [((2 * layer - 1) * teacher_layers + 2 * depth) // (2 * depth) for layer in range(1, depth + 1)]
    return [min(place, teacher_layers) for place in places]


def basis_of(student: KDNASModel, embeddings: TeacherEmbeddings, teacher_size: int) -> torch.Tensor | None:
    """The basis of the teacher's states in which a student starts, ``(H_T, H_S)``; None where it starts in none.

    Only a student that starts from the teacher's embeddings lives in their basis.
    """
    if not isinstance(student.get_input_embeddings(), InheritedWordEmbeddings):
        return None
    return residual_basis(embeddings, student.config.hidden_size, teacher_size)


def _copyable(teacher: PreTrainedModel) -> bool:
    try:
        check_copyable(teacher)
    except ValueError:
        return False
    return True
