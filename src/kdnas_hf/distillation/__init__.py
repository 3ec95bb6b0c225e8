"""Distillation: a student learns from the outputs of a frozen teacher."""

from .arguments import DistillationTrainingArguments, TeacherArguments
from .configuration import training_configuration
from .distill import distill
from .layer_mapping import resolve_layer_mapping
from .losses import LOSSES, Loss, LossSetting, Measure, register_loss
from .pool import StudentPool
from .stages import Stage
from .statistics import HiddenStateStatistics
from .student_config import student_config, teacher_shape
from .teacher import Teacher, load_teacher
from .teacher_outputs import Required
from .trainer import DistillationTrainer

__all__ = [
    "LOSSES",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "HiddenStateStatistics",
    "Loss",
    "LossSetting",
    "Measure",
    "Required",
    "Stage",
    "StudentPool",
    "Teacher",
    "TeacherArguments",
    "distill",
    "load_teacher",
    "register_loss",
    "resolve_layer_mapping",
    "student_config",
    "teacher_shape",
    "training_configuration",
]
