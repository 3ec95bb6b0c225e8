"""Arguments of the distillation: those of any Trainer, and what is learnt from the teacher."""

# No `from __future__ import annotations`: HfArgumentParser reads the types of these fields.

import math
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from .hardware import bf16_pays_off
from .layer_mapping import resolve_layer_mapping
from .losses import PROJECTIONS, parse_losses
from .sharded_teacher import SHARDINGS, settle_sharding

NORMALIZATIONS = ("standardize", "none")
STUDENT_INITS = ("teacher", "embeddings", "random")
PROJECTION_INITS = ("fit", "basis", "random")
TEACHER_DTYPES = ("auto", "float32", "bfloat16")
MATRIX_OPTIMIZERS = ("adamw", "muon")
CACHE_PRECISIONS = ("bfloat16", "float32", "int8")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError, naming the field and its choices, unless ``value`` is one of them."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose from {', '.join(choices)}.")


@dataclass
class TeacherArguments:
    """Which encoder is the teacher."""

    teacher: str = field(
        default="embedded",
        metadata={"help": "Hub id or local path of an encoder, or embedded: the one that comes with the demo extra."},
    )
    teacher_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of it on the Hub."})


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what is learnt from the teacher.

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
    matrix_optimizer: str = field(
        default="adamw",
        metadata={
            "help": "What trains the matrices of the students' layers: adamw, or muon, which learnt more in hundreds "
            "of steps and less in thousands (docs/benchmarks.md), and takes longer for each. All else is trained by "
            "`optim`, which muon needs to be AdamW."
        },
    )
    muon_learning_rate: float = field(default=1e-2, metadata={"help": "The initial learning rate of Muon."})
    warmup_fraction: float = field(
        default=0.05, metadata={"help": "Share of the steps that warm up, where `warmup_steps` is not given."}
    )
    losses: list[str] = field(
        default_factory=lambda: ["hidden_states"],
        metadata={
            "help": "Losses with their weights, as 'hidden_states:1.0 relations:0.5': hidden_states, cosine, relations "
            "(MiniLMv2), attention_maps, logits, masked_lm; soft_labels and labels of a task's data."
        },
    )
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
            "help": "Where the projections start: fit, by ridge regression on a sample of the text; basis, the "
            "principal basis of the teacher's embeddings (for students that inherit these; random for others); or "
            "random."
        },
    )
    hidden_state_normalization: str = field(
        default="standardize",
        metadata={"help": "standardize: the teacher's mean and variance per layer and dimension; none: raw states."},
    )
    statistics_sentences: int = field(
        default=1024,
        metadata={
            "help": "Training texts from which the teacher's mean and variance are estimated, and to which students "
            "are fitted before the first step."
        },
    )
    student_init: str = field(
        default="embeddings",
        metadata={
            "help": "Where a student starts: teacher, its embeddings (whose table stays frozen) and mapped layers; "
            "embeddings, these alone; or random."
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
    vocabulary_chunk: int = field(
        default=8192, metadata={"help": "Columns of the vocabulary that logits are made of at a time."}
    )
    cache_teacher_states: str = field(
        default="auto",
        metadata={
            "help": "Compute the teacher's states once and keep them on disk: true, false, or auto: where a text is "
            "read more than once and they fit in cache_max_gb. Not with attention_maps, logits, masked_lm, soft_labels "
            "and labels."
        },
    )
    cache_max_gb: float = field(
        default=20.0, metadata={"help": "Most that the teacher's states may take on disk, in GB (10^9 bytes)."}
    )
    cache_precision: str = field(
        default="bfloat16",
        metadata={"help": "Precision of the states on disk: bfloat16, float32, or int8 (a scale for each token)."},
    )
    cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Where the teacher's states are kept, for other runs as well; by default in output_dir, removed "
            "when the training ends."
        },
    )
    occurring_embeddings: bool = field(
        default=True,
        metadata={
            "help": "Students that start at random: train only the word embeddings that occur in the text, which "
            "changes nothing that is learnt (for Adam without weight decay; else all are trained)."
        },
    )
    teacher_dtype: str = field(
        default="auto", metadata={"help": "float32, bfloat16, or auto: bfloat16 if the training runs in bf16."}
    )
    shard_teacher: str = field(
        default="auto",
        metadata={
            "help": "Keep only a share of the teacher in each process: no, fsdp (FSDP2), zero3 (DeepSpeed), or auto: "
            "as the Accelerate configuration shards. Students are never sharded."
        },
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
        check_choice("projection", self.projection, PROJECTIONS)
        check_choice("projection_init", self.projection_init, PROJECTION_INITS)
        check_choice("hidden_state_normalization", self.hidden_state_normalization, NORMALIZATIONS)
        check_choice("student_init", self.student_init, STUDENT_INITS)
        check_choice("teacher_dtype", self.teacher_dtype, TEACHER_DTYPES)
        if isinstance(self.cache_teacher_states, bool):  # YAML reads true and false so
            self.cache_teacher_states = str(self.cache_teacher_states).lower()
        check_choice("cache_teacher_states", self.cache_teacher_states, ("auto", "true", "false"))
        check_choice("matrix_optimizer", self.matrix_optimizer, MATRIX_OPTIMIZERS)
        if self.matrix_optimizer == "muon" and not str(getattr(self.optim, "value", self.optim)).startswith(
            "adamw_torch"
        ):
            raise ValueError(f"matrix_optimizer='muon' goes with optim=adamw_torch_fused, not {self.optim!r}.")
        if self.muon_learning_rate <= 0:
            raise ValueError(f"muon_learning_rate={self.muon_learning_rate} must be positive.")
        check_choice("cache_precision", self.cache_precision, CACHE_PRECISIONS)
        if self.cache_max_gb <= 0:
            raise ValueError(
                f"cache_max_gb={self.cache_max_gb} must be positive; cache_teacher_states=false caches none."
            )
        for name in ("relation_heads", "relation_teacher_layer"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative.")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be positive.")
        if not 0 < self.mlm_probability < 1:
            raise ValueError(f"mlm_probability={self.mlm_probability} is not between 0 and 1.")
        if self.vocabulary_chunk < 1:
            raise ValueError(f"vocabulary_chunk={self.vocabulary_chunk} must be at least 1.")
        _ = self.loss_weights
        check_choice("shard_teacher", self.shard_teacher, SHARDINGS)
        self.shard_teacher = settle_sharding(self)
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction={self.warmup_fraction} is not in [0, 1).")
        if self.cpu_threads is not None and self.cpu_threads < 1:
            raise ValueError(f"cpu_threads={self.cpu_threads} must be at least 1.")
        if self.statistics_sentences < 1:
            raise ValueError(f"statistics_sentences={self.statistics_sentences} must be at least 1.")
        if not (isinstance(self.layer_mapping, str) and ":" in self.layer_mapping):
            resolve_layer_mapping(self.layer_mapping, 1, 1)  # the name alone: depths are known later
        if self.auto_bf16 and not (self.bf16 or self.fp16):
            self.bf16 = bf16_pays_off(use_cpu=self.use_cpu)
            # TrainingArguments takes bf16 on a machine without an accelerator only where the CPU is asked for
            self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
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
    def teacher_in_bf16(self) -> bool:
        """Whether the frozen teacher computes in bf16."""
        return self.teacher_dtype == "bfloat16" or (self.teacher_dtype == "auto" and bool(self.bf16))
