"""Arguments of an evaluation of sentence vectors."""

# No `from __future__ import annotations` here: HfArgumentParser needs annotations that are types, not strings.

from dataclasses import dataclass, field

from ...utils.choices import check_choice

VECTOR_BASELINES = ("cut", "static")


@dataclass
class EmbeddingArguments:
    """How the vectors of sentence encoders are compared.

    Raises:
        ValueError: A field has an impossible value.
    """

    teacher_index: bool = field(
        default=False,
        metadata={
            "help": "Look the student's queries up among the teacher's vectors as well (tasks with a corpus); their "
            "vectors must be of one width."
        },
    )
    vector_baselines: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Also score cut, the teacher without the layers that the student did not start from; static, "
            "Model2Vec of the teacher (extra embedders). Neither takes text or training."
        },
    )
    min_share: float = field(
        default=0.9, metadata={"help": "Share of the teacher's score below which a language is named."}
    )
    resamples: int = field(default=1000, metadata={"help": "Resamples of the rows that give the intervals."})

    def __post_init__(self) -> None:
        for name in self.vector_baselines:
            check_choice("vector_baselines", name, VECTOR_BASELINES)
        if self.min_share <= 0:
            raise ValueError(f"min_share={self.min_share} must be positive, as 0.9.")
        if self.resamples < 1:
            raise ValueError(f"resamples={self.resamples} must be at least 1.")
