"""Arguments of an evaluation: which models, on which tasks, with which budget."""

# No `from __future__ import annotations` here: HfArgumentParser needs annotations that are types, not strings.

from dataclasses import dataclass, field

from ..distillation.losses import parse_losses
from ..distillation.teacher import EMBEDDED
from .embeddings.task import EmbeddingTask, load_tasks
from .results import BASELINE, STUDENT, TASK_KD, TEACHER
from .task import Task

# values of `baseline` that are no path
RANDOM = "random"
NO_BASELINE = "none"


@dataclass
class TaskDataArguments:
    """Which of a task's data are used.

    Raises:
        ValueError: A field has an impossible value.
    """

    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "A folder of files <name>-<language>-<split>.jsonl (compressed or not) in place of the Hub's data."
        },
    )
    languages: list[str] | None = field(
        default=None, metadata={"help": "Languages to test, by default all that a task has."}
    )
    max_train_examples: int | None = field(default=None, metadata={"help": "Most examples to train on, a sample."})
    max_test_examples: int | None = field(
        default=None, metadata={"help": "Most examples of each test set: its first ones."}
    )

    def __post_init__(self) -> None:
        for name in ("max_train_examples", "max_test_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1, or left out.")


@dataclass
class TaskArguments(TaskDataArguments):
    """One model on one task.

    Raises:
        ValueError: A field has an impossible value.
    """

    model: str = field(
        default="runs/quickstart/student", metadata={"help": "Hub id or path of an encoder, or embedded: the teacher."}
    )
    task: str = field(
        default="intents",
        metadata={"help": "xnli, wikiann, udpos, pawsx, intents, or a YAML file that describes your own."},
    )
    max_length: int = field(
        default=128, metadata={"help": "Longest example in tokens; what is longer is truncated and counted."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        Task.load(self.task)
        if self.max_length < 1:
            raise ValueError(f"max_length={self.max_length} must be at least 1.")


@dataclass
class FineTuningArguments:
    """How a model is fine-tuned: the same for every model that is compared.

    Raises:
        ValueError: A field has an impossible value.
    """

    learning_rates: list[float] = field(
        default_factory=lambda: [2e-4],
        metadata={
            "help": "Learning rates of AdamW. Of several, each model gets the one that is best for it on the "
            "validation set with the first seed."
        },
    )
    num_train_epochs: int = field(default=5, metadata={"help": "Most passes over the training data."})
    patience: int = field(
        default=2,
        metadata={"help": "Passes without a better score on the validation set after which the training stops."},
    )
    train_batch_size: int = field(default=32, metadata={"help": "Examples in an optimizer step."})
    eval_batch_size: int = field(default=64, metadata={"help": "Examples in a batch that is only read."})
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of AdamW."})
    warmup_fraction: float = field(default=0.06, metadata={"help": "Share of the steps that warm up."})
    max_length: int = field(
        default=128,
        metadata={"help": "Longest example in tokens; what is longer is truncated and counted, its words are errors."},
    )
    train_word_embeddings: bool = field(
        default=False,
        metadata={
            "help": "Train the word embeddings of pre-trained models as well. Frozen, the words of languages that are "
            "not trained on stay where those of the training language are. Models that start at random always do."
        },
    )
    auto_bf16: bool = field(
        default=True, metadata={"help": "Compute in bf16 where this machine multiplies bf16 matrices natively."}
    )

    def __post_init__(self) -> None:
        if not self.learning_rates or any(rate <= 0 for rate in self.learning_rates):
            raise ValueError(f"learning_rates={self.learning_rates} must be one or several positive numbers.")
        for name in ("num_train_epochs", "patience", "train_batch_size", "eval_batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay={self.weight_decay} must not be negative.")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction={self.warmup_fraction} is not in [0, 1).")


@dataclass
class EvaluationArguments(FineTuningArguments, TaskDataArguments):
    """Which models are compared on which tasks.

    Raises:
        ValueError: A field has an impossible value.
    """

    student: str = field(default="runs/quickstart/student", metadata={"help": "Hub id or path of the student."})
    teacher: str = field(
        default=EMBEDDED,
        metadata={"help": "Hub id or path of the teacher, or embedded: the one that comes with the demo extra."},
    )
    baseline: str = field(
        default=RANDOM,
        metadata={
            "help": "The same student without distillation: random (its shape with random weights), the path of a "
            "checkpoint (as recipes/distill.py --losses masked_lm makes), or none."
        },
    )
    checkpoints: list[str] = field(
        default_factory=list, metadata={"help": "Further models to compare, as name=<Hub id or path>."}
    )
    tasks: list[str] = field(
        default_factory=lambda: ["intents"],
        metadata={
            "help": "Tasks: xnli, wikiann, udpos, pawsx, intents, or YAML files that describe your own; and those that "
            "sentence vectors are scored by without training: stsb, tatoeba, xquadr, intent_translations."
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2],
        metadata={"help": "Each model is fine-tuned once for each: heads, order of the data and dropout differ."},
    )
    task_distillation: bool = field(
        default=False,
        metadata={"help": "Also distil each fine-tuned teacher into the student on the task's data (student+task-KD)."},
    )
    task_losses: list[str] = field(
        default_factory=lambda: ["soft_labels:1.0", "hidden_states:1.0"],
        metadata={"help": "Losses of the distillation on the task's data, with their weights."},
    )
    task_temperature: float = field(default=2.0, metadata={"help": "Softens the distributions of soft_labels."})
    update_card: bool = field(
        default=True, metadata={"help": "Write the scores into the card of a student in a local directory."}
    )
    latency_sequence_length: int = field(
        default=128, metadata={"help": "Tokens of the text whose latency is measured."}
    )
    latency_threads: int = field(default=1, metadata={"help": "CPU threads of the latency measurement."})
    cpu_threads: int | None = field(default=None, metadata={"help": "CPU threads; by default one for each core."})
    output_dir: str = field(default="runs/evaluation", metadata={"help": "Where the results are left."})

    def __post_init__(self) -> None:
        FineTuningArguments.__post_init__(self)
        TaskDataArguments.__post_init__(self)
        if not self.tasks:
            raise ValueError("tasks must name at least one.")
        load_tasks(self.tasks)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} must be one or several different numbers.")
        if self.cpu_threads is not None and self.cpu_threads < 1:
            raise ValueError(f"cpu_threads={self.cpu_threads} must be at least 1, or left out.")
        for name in ("latency_sequence_length", "latency_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        parse_losses(self.task_losses)
        if self.task_temperature <= 0:
            raise ValueError(f"task_temperature={self.task_temperature} must be positive.")
        _ = self.models

    @property
    def embedding_tasks(self) -> list[str]:
        """Those of ``tasks`` that sentence vectors are scored by."""
        loaded = load_tasks(self.tasks)
        return [name for name, task in zip(self.tasks, loaded, strict=True) if isinstance(task, EmbeddingTask)]

    @property
    def finetuning_tasks(self) -> list[str]:
        """Those of ``tasks`` that models are fine-tuned on."""
        scored = self.embedding_tasks
        return [name for name in self.tasks if name not in scored]

    @property
    def sentence_encoders(self) -> dict[str, str]:
        """Those of `models` whose sentence vectors are scored: not random weights, and nothing that is fine-tuned."""
        return {name: path for name, path in self.models.items() if path != RANDOM and name != TASK_KD}

    @property
    def models(self) -> dict[str, str]:
        """What is compared, by name: teacher, student, baseline if there is one, further checkpoints."""
        models = {TEACHER: self.teacher, STUDENT: self.student}
        if self.task_distillation:
            models[TASK_KD] = self.student
        if self.baseline != NO_BASELINE:
            models[BASELINE] = self.baseline
        for given in self.checkpoints:
            name, equals, path = given.partition("=")
            if not (equals and name and path):
                raise ValueError(f"checkpoints: {given!r} is not of the form name=<Hub id or path>.")
            if name in models:
                raise ValueError(f"checkpoints: the name {name!r} is taken; choose another.")
            models[name] = path
        return models
