"""How a student learns from its teacher."""

from .arguments import DistillationTrainingArguments, TeacherArguments
from .checkpoints import last_whole_checkpoint
from .hardware import bf16_pays_off, share_cpu_threads, usable_cores
from .layer_mapping import LAYER_MAPPINGS, LayerPair, describe_layer_mapping, resolve_layer_mapping
from .length_grouping import LengthGroupedSampler, text_lengths
from .losses import LOSSES, ExplainedVariance, HiddenStateProjections, hidden_state_loss, parse_losses
from .objectives import PooledStudent
from .pool import StudentPool
from .sharded_teacher import place_teacher
from .state_cache import TeacherStateCache
from .state_caching import cache_teacher_states, cacheable_features, check_cacheable
from .streaming import StreamShare
from .teacher import HiddenStateStatistics, Teacher, TeacherDimensions, load_teacher
from .trainer import DistillationTrainer

__all__ = [
    "LAYER_MAPPINGS",
    "LOSSES",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "ExplainedVariance",
    "HiddenStateProjections",
    "HiddenStateStatistics",
    "LayerPair",
    "LengthGroupedSampler",
    "PooledStudent",
    "StreamShare",
    "StudentPool",
    "Teacher",
    "TeacherArguments",
    "TeacherDimensions",
    "TeacherStateCache",
    "bf16_pays_off",
    "cache_teacher_states",
    "cacheable_features",
    "check_cacheable",
    "describe_layer_mapping",
    "hidden_state_loss",
    "last_whole_checkpoint",
    "load_teacher",
    "parse_losses",
    "place_teacher",
    "resolve_layer_mapping",
    "share_cpu_threads",
    "text_lengths",
    "usable_cores",
]
