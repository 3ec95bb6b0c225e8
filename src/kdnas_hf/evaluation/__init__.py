"""What a student is worth: fine-tuned on downstream tasks, in many languages, next to its teacher."""

from .arguments import EvaluationArguments, FineTuningArguments, TaskArguments
from .comparison import Comparison
from .encoding import EncodedExamples, encode_examples
from .finetuning import (
    FineTuned,
    ModelSource,
    ScoreOnValidation,
    best_labels,
    fine_tune,
    score_languages,
    task_collator,
)
from .metrics import METRICS
from .results import EvaluationResults, FineTuningRecord
from .task import Example, HubData, LanguageData, LocalData, Task, task_presets
from .task_data import TaskData, load_task_data
from .task_probe import TaskProbe, load_probe_data, parse_quality

__all__ = [
    "METRICS",
    "Comparison",
    "EncodedExamples",
    "EvaluationArguments",
    "EvaluationResults",
    "Example",
    "FineTuned",
    "FineTuningArguments",
    "FineTuningRecord",
    "HubData",
    "LanguageData",
    "LocalData",
    "ModelSource",
    "ScoreOnValidation",
    "Task",
    "TaskArguments",
    "TaskData",
    "TaskProbe",
    "best_labels",
    "encode_examples",
    "fine_tune",
    "load_probe_data",
    "load_task_data",
    "parse_quality",
    "score_languages",
    "task_collator",
    "task_presets",
]
