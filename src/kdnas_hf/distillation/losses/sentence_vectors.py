"""Sentence vectors: the vector that a student makes of a whole text, against its teacher's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from ...utils.choices import parse_weights
from ...utils.least_squares import LeastSquares
from ...utils.random_state import drawing
from ...utils.sentence_head import Normalize, SentenceHead
from ..batch import DistillationBatch
from ..layer_mapping import LayerPair
from ..statistics import HiddenStateStatistics
from ..student_outputs import StudentOutputs
from ..teacher import Teacher
from ..teacher_outputs import Required
from .arguments import SENTENCE_TERMS, LossArguments
from .base import Loss, LossSetting, Measure, register_loss


def similarities(vectors: torch.Tensor) -> torch.Tensor:
    """Cosine similarities ``(texts, texts)`` of vectors ``(texts, dimension)``."""
    unit = nn.functional.normalize(vectors, dim=-1)
    return unit @ unit.T


def sentence_vector_loss(
    vectors: torch.Tensor, targets: torch.Tensor, terms: dict[str, float], scales: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Weighted sum of the terms over texts, each divided by what it would be of a constant student.

    Args:
        vectors: The student's, ``(texts, dimension)``.
        targets: The teacher's, likewise.
        terms: Weights by name: ``squared_error`` of vectors (of vectors of length 1: twice 1 - cosine), ``cosine``, 1 -
            cosine, and ``similarity``, the squared error of cosine similarities between the texts of the batch.
        scales: What each term is divided by.

    Returns:
        A float32 scalar.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        vectors, targets = vectors.float(), targets.float()
        total = vectors.new_zeros(())
        if weight := terms.get("squared_error"):
            total = total + weight * (vectors - targets).square().sum() / scales["squared_error"]
        if weight := terms.get("cosine"):
            cosines = nn.functional.cosine_similarity(vectors, targets, dim=-1)
            total = total + weight * (1 - cosines).sum() / scales["cosine"]
        if (weight := terms.get("similarity")) and len(vectors) > 1:
            errors = (similarities(vectors) - similarities(targets)).square()
            # the diagonal is 1 for both
            total = total + weight * errors.sum() / (len(vectors) - 1) / scales["similarity"]
    return total


@register_loss
class SentenceVectorsLoss(Loss):
    """The student's sentence vectors, pooled as the teacher pools and mapped by one linear layer, saved with it."""

    name = "sentence_vectors"
    agreement = "R² of sentence vectors"
    description = "squared error between sentence vectors, with cosine and similarity terms by --sentence_terms"

    def __init__(self, setting: LossSetting) -> None:
        super().__init__(setting)
        teacher = setting.teacher.sentence_head
        assert teacher is not None  # `requires` refused it otherwise
        self.terms = parse_weights("sentence_terms", setting.args.sentence_terms, SENTENCE_TERMS)
        dimension = teacher.dimension(setting.teacher.dimensions.hidden_size)
        with drawing(setting.seed):
            linear = nn.Linear(setting.student.config.hidden_size * len(teacher.pooling), dimension)
        # a teacher that maps its pooled states makes vectors in another basis than that of its states
        maps = len(teacher.pooling) > 1 or any(isinstance(layer, nn.Linear) for layer in teacher.layers)
        self.basis = None if maps or setting.args.projection_init != "fit" else setting.basis
        if self.basis is not None:
            linear.weight.data.copy_(self.basis)
            linear.bias.data.zero_()
        self.head = teacher.followed_by(linear, *([Normalize()] if teacher.normalizes else []))
        self.fits = setting.args.projection_init == "fit"
        for term in SENTENCE_TERMS:
            self.register_buffer(f"scale_of_{term}", torch.ones(()), persistent=False)

    @classmethod
    def requires(cls, args: LossArguments, pairs: Sequence[LayerPair], teacher: Teacher) -> Required:
        if teacher.sentence_head is None:
            raise ValueError(
                f"losses: 'sentence_vectors' needs a teacher of sentence vectors, and {teacher.name} has no "
                "modules.json; choose one that sentence-transformers saved, or another loss."
            )
        return Required(sentence_vectors=True)

    def vectors(self, student: StudentOutputs) -> torch.Tensor:
        """The student's sentence vectors ``(batch, dimension)``."""
        return self.head(student.hidden_states[-1], student.batch.attention_mask)

    def forward(self, student: StudentOutputs, batch: DistillationBatch) -> torch.Tensor:
        assert batch.teacher.sentence_vectors is not None
        assert batch.num_texts is not None
        scales = {term: getattr(self, f"scale_of_{term}") for term in self.terms}
        total = sentence_vector_loss(self.vectors(student), batch.teacher.sentence_vectors, self.terms, scales)
        return total / batch.num_texts

    @torch.no_grad()
    def fit(self, samples: Iterable[tuple[StudentOutputs, DistillationBatch]]) -> None:
        """Start the map at the ridge regression of the teacher's vectors, and divide terms by those of a constant."""
        pooled = self.head.followed_by()
        regression, vectors = LeastSquares(), []
        for student, batch in samples:
            assert batch.teacher.sentence_vectors is not None
            vectors.append(batch.teacher.sentence_vectors.float())
            regression.add(pooled(student.hidden_states[-1], batch.attention_mask), vectors[-1])
        if self.fits:
            linear = self.head.layers[0]
            assert isinstance(linear, nn.Linear)
            regression.set_map(linear, self.basis)
        targets = torch.cat(vectors)
        unit = nn.functional.normalize(targets, dim=-1)
        scales = {
            "squared_error": targets.var(0, unbiased=False).sum(),
            "cosine": 1 - unit.mean(0).norm(),
            "similarity": similarities(targets)[~torch.eye(len(targets), dtype=torch.bool)].var(unbiased=False),
        }
        for term, scale in scales.items():
            getattr(self, f"scale_of_{term}").copy_(scale if scale > 0 else torch.ones(()))

    def sentence_head(self, teacher: SentenceHead, statistics: HiddenStateStatistics | None) -> SentenceHead:
        return self.head

    def measure(self) -> Measure:
        return VectorAgreement(self)


class VectorAgreement(Measure):
    """How a student's sentence vectors agree with its teacher's on held-out text.

    ``vector_r2`` is the share of the variance of the teacher's vectors, around their mean, that the student explains.
    """

    loss: SentenceVectorsLoss

    def __init__(self, loss: SentenceVectorsLoss) -> None:
        self.loss = loss
        dimension = loss.head.dimension(0)  # that of its linear layer
        # the loss, texts, squared errors, cosines and squared lengths; then the sum of the teacher's vectors
        self.sums = torch.zeros(5 + dimension, dtype=torch.float64)

    def add(self, student: StudentOutputs, batch: DistillationBatch) -> None:
        assert batch.teacher.sentence_vectors is not None
        vectors, targets = self.loss.vectors(student).double().cpu(), batch.teacher.sentence_vectors.double().cpu()
        values = [
            self.loss(student, batch).double().cpu(),
            torch.tensor(len(vectors)),
            (vectors - targets).square().sum(),
            nn.functional.cosine_similarity(vectors, targets, dim=-1).sum(),
            targets.square().sum(),
        ]
        self.sums += torch.cat([torch.stack([value.double() for value in values]), targets.sum(0)])

    def metrics(self) -> dict[str, float]:
        """``loss``, ``vector_r2``, ``cosine``, the mean cosine with the teacher's vectors, and ``error``, 1 - R²."""
        loss, texts, errors, cosines, squares = self.sums[:5].tolist()
        variance = squares - float(self.sums[5:].square().sum()) / texts
        error = errors / variance if variance > 1e-9 * squares else 1.0
        return {"loss": loss / texts, "vector_r2": 1 - error, "cosine": cosines / texts, "error": error}
