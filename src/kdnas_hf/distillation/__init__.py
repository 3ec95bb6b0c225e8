"""Distillation: a student learns from the outputs of a frozen teacher."""

from .arguments import DistillationTrainingArguments, TeacherArguments
from .distill import distill, train_or_resume
from .layer_mapping import LayerPair, describe_layer_mapping, resolve_layer_mapping
from .losses import LOSSES, Loss, LossSetting, Measure, register_loss
from .pool import StudentPool, required_by
from .samples import estimate_statistics
from .stages import Stage
from .statistics import HiddenStateStatistics
from .stored_targets import StoredTargets, reason_against_storing, store_if_it_pays
from .targets import Targets
from .teacher import Teacher, TeacherDimensions, load_teacher
from .teacher_outputs import Required
from .trainer import DistillationTrainer

__all__ = [
    "LOSSES",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "HiddenStateStatistics",
    "LayerPair",
    "Loss",
    "LossSetting",
    "Measure",
    "Required",
    "Stage",
    "StoredTargets",
    "StudentPool",
    "Targets",
    "Teacher",
    "TeacherArguments",
    "TeacherDimensions",
    "describe_layer_mapping",
    "distill",
    "estimate_statistics",
    "load_teacher",
    "reason_against_storing",
    "register_loss",
    "required_by",
    "resolve_layer_mapping",
    "store_if_it_pays",
    "train_or_resume",
]
