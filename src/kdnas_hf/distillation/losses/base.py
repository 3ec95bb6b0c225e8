"""What a loss is, and the registry by which all others find it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ...students import KDNASModel
from ...utils.choices import parse_weights
from ...utils.sentence_head import SentenceHead
from ..batch import DistillationBatch
from ..layer_mapping import LayerPair
from ..statistics import HiddenStateStatistics
from ..student_outputs import StudentOutputs
from ..teacher import Teacher
from ..teacher_outputs import Required
from .arguments import LossArguments


@dataclass(frozen=True)
class LossSetting:
    """What a loss is made for: one student, its teacher, and the arguments.

    ``pairs`` says which student layer learns from which teacher layer; ``basis`` ``(teacher_hidden_size, hidden_size)``
    is that of the teacher's states in which the student starts, if any; parameters are drawn from ``seed``.
    """

    args: LossArguments
    student: KDNASModel
    teacher: Teacher
    pairs: Sequence[LayerPair]
    basis: torch.Tensor | None = None
    seed: int = 0


class Loss(nn.Module):
    """A loss that a student learns by: what it needs, its value, and its measure on held-out text.

    A new loss is a subclass with a ``name``, in a file of its own, under `register_loss`. Whatever parameters it has
    train with the student; those that make its sentence vectors are saved with it (see `sentence_head`).

    Attributes:
        name: Its name in ``--losses``, in logs and in metrics.
        description: One line for help texts.
        student_head: The head that the student needs: ``"masked_lm"``, ``"task"`` or None.
        teacher_head: The head that the teacher needs, likewise.
        masks_tokens: Whether it reads text in which tokens are masked.
        uses_labels: Whether it reads the labels of a task's data.
        agreement: What 1 - ``error`` of its measure is called, the higher the better.
        storable: Whether what it requires of the teacher depends on the text alone, so that it may be kept on disk.
        required: The teacher outputs that it compares.
    """

    name: ClassVar[str]
    description: ClassVar[str] = ""
    student_head: ClassVar[str | None] = None
    teacher_head: ClassVar[str | None] = None
    masks_tokens: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False
    agreement: ClassVar[str] = "1 - L"
    storable: ClassVar[bool] = True

    def __init__(self, setting: LossSetting) -> None:
        super().__init__()
        self.required = self.requires(setting.args, setting.pairs, setting.teacher)

    @classmethod
    def requires(cls, args: LossArguments, pairs: Sequence[LayerPair], teacher: Teacher) -> Required:
        """The teacher outputs that the loss compares, for a student of which only the layer mapping is known.

        Raises:
            ValueError: If the teacher cannot give them.
        """
        return Required()

    def forward(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        """The loss of one batch, a scalar in float32 or wider.

        It is a sum over tokens (or labels, or texts) divided by ``batch.num_tokens`` (or ``num_labels``, or
        ``num_texts``), so that the losses of the parts of a batch add up to that of the whole.
        """
        raise NotImplementedError

    def fit(self, samples: Iterable[tuple[StudentOutputs, DistillationBatch]]) -> None:
        """Start the loss's own parameters where a sample of the text, read in eval mode, puts them."""

    def sentence_head(self, teacher: SentenceHead, statistics: HiddenStateStatistics | None) -> SentenceHead | None:
        """What makes of the student's last states vectors that are comparable to its teacher's; None if nothing does.

        ``teacher`` makes those of the teacher, whose states were standardized by ``statistics``, if at all.
        """
        return None

    def measure(self) -> Measure:
        """A fresh measure of the loss on held-out text."""
        return Measure(self)


class Measure:
    """The value of a loss on held-out text; ``sums``, in float64, of the parts of a text add up.

    That of a loss on whole texts, which divides by ``num_texts``, counts for itself.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.sums = torch.zeros(2, dtype=torch.float64)

    def add(self, student: StudentOutputs, batch: DistillationBatch) -> None:
        """Count a batch whose ``num_tokens`` and ``num_labels`` are 1, so that its loss is a sum."""
        counts = batch.labeled if self.loss.masks_tokens or self.loss.uses_labels else batch.real_tokens
        value = self.loss(student, batch).detach().double().cpu()
        self.sums += torch.stack([value, torch.tensor(float(counts.numel()), dtype=torch.float64)])

    def metrics(self) -> dict[str, float]:
        """``loss``, and ``error`` from 0 (all is learned) to 1, of which a search makes its reward; subclasses more."""
        loss = float(self.sums[0] / self.sums[1])
        return {"loss": loss, "error": loss / (1 + loss)}


LOSSES: dict[str, type[Loss]] = {}


def agreement_of(losses: Iterable[str]) -> str:
    """What 1 - ``error`` of some losses together is called: that of a single one has a name of its own."""
    (first, *others) = losses
    return Loss.agreement if others else LOSSES[first].agreement


def register_loss(loss: type[Loss]) -> type[Loss]:
    """Class decorator: let ``--losses`` name this loss.

    Raises:
        ValueError: If another loss has its name, or the name could not be written in ``--losses``.
    """
    if not loss.name.isidentifier():
        raise ValueError(
            f"name={loss.name!r} of {loss.__name__} is not a Python identifier; choose one such as my_loss."
        )
    if LOSSES.setdefault(loss.name, loss) is not loss:
        raise ValueError(
            f"name={loss.name!r} of {loss.__name__} is taken by {LOSSES[loss.name].__name__}; choose another."
        )
    return loss


def describe_losses() -> str:
    """All losses in a line, each with what it is."""
    return "; ".join(f"{name}: {loss.description}" for name, loss in LOSSES.items())


def parse_losses(values: Sequence[str] | str) -> dict[str, float]:
    """Weights by name of ``"hidden_states:1.0 relations:0.5"``, or of a list of such items; a bare name has weight 1.

    Raises:
        ValueError: If there is none, one is unknown or named twice, two do not go together, or a weight is not a
            positive finite number.
    """
    weights = parse_weights("losses", values, LOSSES)
    masked = first_loss(weights, lambda loss: loss.masks_tokens)
    labeled = first_loss(weights, lambda loss: loss.uses_labels)
    if masked and labeled:
        raise ValueError(
            f"losses: {masked!r} masks tokens, whose text {labeled!r} must read whole; leave one of them out."
        )
    return weights


def first_loss(names: Iterable[str], condition: Callable[[type[Loss]], bool]) -> str | None:
    """The first of some registered losses that meets a condition."""
    return next((name for name in names if condition(LOSSES[name])), None)
