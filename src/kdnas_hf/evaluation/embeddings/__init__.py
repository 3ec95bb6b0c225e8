"""What sentence vectors are worth as they are: similarity, translations, retrieval and clusters, without training."""

from .arguments import EmbeddingArguments
from .bootstrap import Estimate
from .data import EmbeddingData, load_embedding_data
from .encoder import Encoder, EncoderVectors, cut_baseline, load_encoder, static_baseline
from .evaluate import evaluate_embedders
from .kinds import KINDS, Kind, Rows, register_kind
from .results import EmbeddingResults, EmbeddingTaskScores, EncoderScores
from .task import EmbeddingTask, embedding_task_presets, load_tasks

__all__ = [
    "KINDS",
    "EmbeddingArguments",
    "EmbeddingData",
    "EmbeddingResults",
    "EmbeddingTask",
    "EmbeddingTaskScores",
    "Encoder",
    "EncoderScores",
    "EncoderVectors",
    "Estimate",
    "Kind",
    "Rows",
    "cut_baseline",
    "embedding_task_presets",
    "evaluate_embedders",
    "load_embedding_data",
    "load_encoder",
    "load_tasks",
    "register_kind",
    "static_baseline",
]
