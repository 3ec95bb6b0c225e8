"""The arguments that losses read: how layers, projections and distributions are compared."""

# No `from __future__ import annotations`: HfArgumentParser reads the types of these fields.

from dataclasses import dataclass, field

from ...utils.choices import check_choice, parse_weights
from ..layer_mapping import resolve_layer_mapping

PROJECTIONS = ("per_layer", "shared")
PROJECTION_INITS = ("fit", "random")
SENTENCE_TERMS = ("squared_error", "cosine", "similarity")


@dataclass
class LossArguments:
    """What the losses of a distillation read of its arguments."""

    layer_mapping: str = field(
        default="uniform",
        metadata={
            "help": "Which teacher layers a student layer learns from: uniform, last, uniform+last (published), final, "
            "or pairs counted from 1, as '1:4 2:8 3:12'."
        },
    )
    projection: str = field(
        default="per_layer",
        metadata={"help": "Maps from student to teacher states: one per_layer, or one shared by all layers."},
    )
    projection_init: str = field(
        default="fit",
        metadata={
            "help": "Where the projections start: fit, by ridge regression on a sample of the text, towards the basis "
            "in which the student starts; or random."
        },
    )
    relation_heads: int = field(
        default=0,
        metadata={
            "help": "Heads into which queries, keys and values are cut for the loss relations; 0: the teacher's "
            "attention heads. The next lower number that divides both hidden sizes is taken."
        },
    )
    relation_teacher_layer: int = field(
        default=0,
        metadata={"help": "Teacher layer whose relations the student's last layer learns, from 1; 0: the last."},
    )
    temperature: float = field(
        default=2.0, metadata={"help": "Softens the distributions of the losses logits and soft_labels."}
    )
    mlm_probability: float = field(
        default=0.15, metadata={"help": "Share of the tokens that are masked, where a loss needs masked tokens."}
    )

    sentence_terms: list[str] = field(
        default_factory=lambda: ["squared_error"],
        metadata={
            "help": "Terms of the loss sentence_vectors with their weights, as 'squared_error:1.0 similarity:0.5': "
            f"{', '.join(SENTENCE_TERMS)}."
        },
    )

    def check_loss_arguments(self) -> None:
        """Raise ValueError, naming the field and the remedy, where a value is wrong."""
        check_choice("projection", self.projection, PROJECTIONS)
        check_choice("projection_init", self.projection_init, PROJECTION_INITS)
        for name in ("relation_heads", "relation_teacher_layer"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative.")
        parse_weights("sentence_terms", self.sentence_terms, SENTENCE_TERMS)
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be positive.")
        if not 0 < self.mlm_probability < 1:
            raise ValueError(f"mlm_probability={self.mlm_probability} is not between 0 and 1.")
        if not (isinstance(self.layer_mapping, str) and ":" in self.layer_mapping):
            resolve_layer_mapping(self.layer_mapping, 1, 1)  # the name alone: depths are known later
