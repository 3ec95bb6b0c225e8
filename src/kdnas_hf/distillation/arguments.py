"""Arguments of the distillation: those of any Trainer, and what is learned from the teacher."""

# No `from __future__ import annotations`: HfArgumentParser reads the types of these fields.

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from ..students import Start
from ..utils.choices import check_choice
from ..utils.hardware import bf16_pays_off
from .contract import check_training_arguments
from .losses import LOSSES, LossArguments, describe_losses, first_loss, parse_losses
from .stages import Stage, parse_stages

NORMALIZATIONS = ("standardize", "none")
TEACHER_DTYPES = ("auto", "float32", "bfloat16")


@dataclass
class TeacherArguments:
    """Which encoder is the teacher."""

    teacher: str = field(
        default="embedded",
        metadata={"help": "Hub id or local path of an encoder, or embedded: the one that comes with the demo extra."},
    )
    teacher_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of it on the Hub."})


@dataclass
class DistillationTrainingArguments(TrainingArguments, LossArguments):
    """`TrainingArguments` with what is learned from the teacher.

    The defaults are what taught most in a mini-KD. KD-NAS exactly as published (arXiv 2303.09639) is
    ``layer_mapping="uniform+last"``, ``projection="shared"``, ``projection_init="random"``,
    ``hidden_state_normalization="none"`` and ``student_init="random"``, and a smaller learning rate such as 5e-4.
    """

    learning_rate: float = field(
        default=3e-3,
        metadata={
            "help": "The initial learning rate of AdamW. The default taught students of 2 to 4 layers, up to 384 wide, "
            "most; wider ones want less."
        },
    )
    warmup_fraction: float = field(
        default=0.05, metadata={"help": "Share of the steps that warm up, where `warmup_steps` is not given."}
    )
    losses: list[str] = field(
        default_factory=lambda: ["hidden_states"],
        metadata={"help": f"Losses with their weights, as 'hidden_states:1.0 cosine:0.5'. {describe_losses()}."},
    )
    stages: list[str] | None = field(
        default=None,
        metadata={
            "help": "Stages, one after the other: in YAML a list of mappings of losses, layer_mapping, dataset, "
            "trains, num_train_epochs or max_steps, learning_rate, lr_scheduler_type, warmup_fraction; on the command "
            "line JSON objects. What a stage leaves out is as the other arguments say (docs/distillation.md)."
        },
    )
    hidden_state_normalization: str = field(
        default="standardize",
        metadata={"help": "standardize: the teacher's mean and variance per layer and dimension; none: raw states."},
    )
    statistics_sentences: int = field(
        default=1024,
        metadata={
            "help": "Training texts from which the teacher's mean and variance are estimated, and to which projections "
            "are fitted before the first step."
        },
    )
    student_init: str = field(
        default="auto",
        metadata={
            "help": "Where a student starts: layers, exact copies of layers of a teacher of its width; embeddings, the "
            "teacher's embeddings in their principal basis; random; or auto: layers where the student has its "
            "teacher's width, else embeddings. The table of the teacher's embeddings stays frozen."
        },
    )
    student_layers: list[int] | None = field(
        default=None,
        metadata={
            "help": "Teacher layers, from 1, that the student's layers start as copies of, as '3 7 11'; by default "
            "the middle layers of as many equal blocks."
        },
    )
    cache_teacher_states: str = field(
        default="auto",
        metadata={
            "help": "Compute the teacher's outputs once and keep them on disk: true, false, or auto: on a CPU, where a "
            "text is read more than once, they fit in cache_max_gb, and targets depend on the text alone."
        },
    )
    cache_max_gb: float = field(
        default=20.0, metadata={"help": "Most that the teacher's outputs may take on disk, in GB (10^9 bytes)."}
    )
    cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Where the teacher's outputs are kept, for other runs as well; by default with this run alone."
        },
    )
    occurring_embeddings: bool = field(
        default=True,
        metadata={
            "help": "Students that start at random: train only the word embeddings that occur in the text, which "
            "changes nothing that is learned (for Adam without weight decay; else all are trained)."
        },
    )
    teacher_dtype: str = field(
        default="auto", metadata={"help": "float32, bfloat16, or auto: bfloat16 if the training runs in bf16."}
    )
    auto_bf16: bool = field(
        default=False, metadata={"help": "Train in bf16 where this machine multiplies bf16 matrices natively."}
    )
    cpu_threads: int | None = field(
        default=None,
        metadata={"help": "Recipes: CPU threads of each process; by default the cores divided by the processes."},
    )
    global_train_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Texts in an optimizer step over all processes and accumulated micro-batches; sets "
            "per_device_train_batch_size, so that any number of processes takes the same steps."
        },
    )
    group_texts_by_length: bool = field(
        default=True, metadata={"help": "Put texts of similar length into the same batch, to pad less."}
    )

    def __post_init__(self) -> None:
        self.check_loss_arguments()
        check_choice("hidden_state_normalization", self.hidden_state_normalization, NORMALIZATIONS)
        _ = self.start
        check_choice("teacher_dtype", self.teacher_dtype, TEACHER_DTYPES)
        if isinstance(self.cache_teacher_states, bool):  # YAML reads true and false so
            self.cache_teacher_states = str(self.cache_teacher_states).lower()
        check_choice("cache_teacher_states", self.cache_teacher_states, ("auto", "true", "false"))
        if self.cache_max_gb <= 0:
            raise ValueError(
                f"cache_max_gb={self.cache_max_gb} must be positive; cache_teacher_states=false keeps none."
            )
        _ = self.loss_weights
        stages: Any = self.stages
        self.stages = None if stages is None else [stage.as_dict() for stage in parse_stages(stages) or []]  # type: ignore[misc]
        for stage, losses in zip(self.stage_list, self.losses_of_stages, strict=True):
            if "head" in stage.trains and not first_loss(losses, lambda loss: loss.student_head is not None):
                raise ValueError(
                    f"stages: trains=head trains nothing by {', '.join(losses)}; leave it out, or add a loss of a head."
                )
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction={self.warmup_fraction} is not in [0, 1).")
        if self.cpu_threads is not None and self.cpu_threads < 1:
            raise ValueError(f"cpu_threads={self.cpu_threads} must be at least 1.")
        if self.statistics_sentences < 1:
            raise ValueError(f"statistics_sentences={self.statistics_sentences} must be at least 1.")
        check_training_arguments(self)
        if self.auto_bf16 and not (self.bf16 or self.fp16):
            self.bf16 = bf16_pays_off(use_cpu=self.use_cpu)
            # TrainingArguments takes bf16 on a machine without an accelerator only where the CPU is asked for
            self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.fp16 and (self.use_cpu or not torch.accelerator.is_available()):
            raise ValueError("fp16=true needs an accelerator; choose bf16=true on a CPU.")
        if self.greater_is_better is None and (self.metric_for_best_model or "").endswith("error"):
            self.greater_is_better = False  # as of any loss
        super().__post_init__()
        if self.global_train_batch_size is not None:
            self.per_device_train_batch_size = self._texts_per_micro_batch(self.global_train_batch_size)

    def _texts_per_micro_batch(self, texts_per_step: int) -> int:
        parts = self.world_size * self.gradient_accumulation_steps
        if texts_per_step < parts or texts_per_step % parts:
            raise ValueError(
                f"global_train_batch_size={texts_per_step} is not divisible by processes x "
                f"gradient_accumulation_steps = {parts}; choose a multiple of {parts}."
            )
        return texts_per_step // parts

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Steps that warm up: `warmup_fraction` of all, unless `warmup_steps` (in 4.x also `warmup_ratio`) is set."""
        if self.warmup_steps or getattr(self, "warmup_ratio", None):
            return super().get_warmup_steps(num_training_steps)
        return math.ceil(num_training_steps * self.warmup_fraction)

    @property
    def loss_weights(self) -> dict[str, float]:
        """The losses by name with their weights."""
        return parse_losses(self.losses)

    @property
    def start(self) -> Start:
        """Where students start that are given as configurations."""
        return Start(self.student_init, self.student_layers)

    @property
    def stage_list(self) -> list[Stage]:
        """The stages; one that changes nothing where none are given."""
        stages: Any = self.stages
        return parse_stages(stages) or [Stage()]

    @property
    def teacher_torch_dtype(self) -> torch.dtype | None:
        """What the frozen teacher computes in; None where it is that of its weights."""
        if self.teacher_dtype == "bfloat16" or (self.teacher_dtype == "auto" and self.bf16):
            return torch.bfloat16
        return torch.float32 if self.teacher_dtype == "float32" else None

    @property
    def losses_of_stages(self) -> list[dict[str, float]]:
        """The losses of each stage by name, with their weights."""
        return [parse_losses(stage.losses or self.losses) for stage in self.stage_list]

    def head_for_text(self) -> str | None:
        """The head that a teacher needs where students learn from text without labels, None where it needs none.

        Raises:
            ValueError: If a loss reads the labels of a task's data.
        """
        names = [name for losses in self.losses_of_stages for name in losses]
        labeled = first_loss(names, lambda loss: loss.uses_labels)
        if labeled:
            raise ValueError(
                f"losses: {labeled!r} reads the labels of a task's data, and text has none; leave it out, or distil "
                "on a task with recipes/evaluate.py --task_distillation true."
            )
        return next((head for name in names if (head := LOSSES[name].teacher_head)), None)
