"""What a published student carries: its evidence, its card, and how it gets to the Hub."""

from .arguments import CompressionArguments, PublishArguments
from .card_callback import ModelCardCallback
from .compression import compress_student, trim_students
from .document import document_distillation, document_export, document_search, languages_of
from .evidence import (
    CompressionEvidence,
    LatencyEvidence,
    SearchEvidence,
    StudentEvidence,
    TrainingEvidence,
    TrainingSetup,
    record_compression,
    record_evaluation,
    record_latency,
    record_search,
    record_training,
)
from .model_card import KDNASModelCardData, render_card, write_model_card, write_scores_into_card
from .publish import BudgetStudent, HubRepositories, Publication, publish, students_by_budget
from .staging import PublicationError, StagedStudent, stage_student

__all__ = [
    "BudgetStudent",
    "CompressionArguments",
    "CompressionEvidence",
    "HubRepositories",
    "KDNASModelCardData",
    "LatencyEvidence",
    "ModelCardCallback",
    "Publication",
    "PublicationError",
    "PublishArguments",
    "SearchEvidence",
    "StagedStudent",
    "StudentEvidence",
    "TrainingEvidence",
    "TrainingSetup",
    "compress_student",
    "document_distillation",
    "document_export",
    "document_search",
    "languages_of",
    "publish",
    "record_compression",
    "record_evaluation",
    "record_latency",
    "record_search",
    "record_training",
    "render_card",
    "stage_student",
    "students_by_budget",
    "trim_students",
    "write_model_card",
    "write_scores_into_card",
]
