"""Arguments of an export."""

# No `from __future__ import annotations`: HfArgumentParser reads the types of these fields.

from dataclasses import dataclass, field

from ..latency import TimedCallArguments
from .backends import BACKENDS, ONNXRUNTIME, OPENVINO, Backend
from .check import MAX_SCORE_DROP, MIN_COSINE

FORMATS = {"onnx": ONNXRUNTIME, "openvino": OPENVINO}


@dataclass
class ExportArguments(TimedCallArguments):
    """What is exported, how it is checked, and what its latency is measured beside."""

    student: str = field(
        default="runs/quickstart/student", metadata={"help": "Directory of the student (or of any encoder)."}
    )
    format: str = field(default="openvino", metadata={"help": "onnx (for ONNX Runtime) or openvino."})
    int8: bool = field(default=False, metadata={"help": "Linear maps and word embeddings in int8, else float32."})
    static: bool = field(
        default=False,
        metadata={
            "help": "onnx, int8: fix the ranges of activations by calibration, instead of measuring them in each call; "
            "openvino always does."
        },
    )
    int8_embeddings: bool = field(
        default=True, metadata={"help": "int8: quantize the word embeddings too, each row with its own scale."}
    )
    reduce_range: bool = field(
        default=False, metadata={"help": "onnx, int8: weights in 7 bits, for x86 processors without VNNI instructions."}
    )
    calibration_sentences: int = field(default=300, metadata={"help": "Sentences to calibrate with."})
    check_sentences: int = field(default=200, metadata={"help": "Other sentences, on which outputs are compared."})
    min_cosine: float = field(
        default=MIN_COSINE,
        metadata={"help": "Least median cosine between the outputs of artefact and checkpoint; below, it is refused."},
    )
    task: str | None = field(
        default=None,
        metadata={"help": "Task that the student's head was trained on: a preset or a YAML file; both are scored."},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Local files of the task, as recipes/evaluate.py takes."}
    )
    max_test_examples: int | None = field(default=None, metadata={"help": "Of each language of the task."})
    max_score_drop: float = field(
        default=MAX_SCORE_DROP, metadata={"help": "Points of the task's score that may be lost; beyond, it is refused."}
    )
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Whose latency is measured beside: a path or id, 'embedded', or 'none'; by default the teacher "
            "that the student's evidence names."
        },
    )
    latency_repeats: int = field(default=30, metadata={"help": "Timed calls of each model."})
    seed: int = field(default=0, metadata={"help": "Of the choice of sentences."})

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format={self.format!r} is unknown; choose from {', '.join(FORMATS)}.")
        for name in ("static", "reduce_range"):
            if getattr(self, name) and not (self.int8 and self.format == "onnx"):
                raise ValueError(f"{name} is for --format onnx --int8; leave it out.")
        for name in ("calibration_sentences", "check_sentences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if not 0 < self.min_cosine <= 1:
            raise ValueError(f"min_cosine={self.min_cosine} must be above 0 and at most 1.")
        if self.max_score_drop < 0:
            raise ValueError(f"max_score_drop={self.max_score_drop} must not be negative.")
        if self.data_dir is not None and self.task is None:
            raise ValueError("data_dir is given without a task; name the task, or leave data_dir out.")

    @property
    def backend(self) -> Backend:
        """What will run the artefact."""
        name = self.format
        if self.int8:
            name += "-int8-static" if self.static else "-int8"
        return BACKENDS[name]
