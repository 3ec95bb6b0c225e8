"""Heads of a teacher's checkpoint, and for a task's classes one like it on a student."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from ..utils.random_state import drawing
from .configuration_kdnas import KDNASConfig
from .modeling_kdnas import KDNASForSequenceClassification, KDNASForTokenClassification, KDNASModel

MASKED_LM = "masked_lm"
TASK = "task"  # whichever of the following a checkpoint has
SEQUENCE_CLASSIFICATION = "sequence_classification"
TOKEN_CLASSIFICATION = "token_classification"
TASK_HEADS: dict[str, Any] = {
    SEQUENCE_CLASSIFICATION: AutoModelForSequenceClassification,
    TOKEN_CLASSIFICATION: AutoModelForTokenClassification,
}
HEADS: dict[str, Any] = {MASKED_LM: AutoModelForMaskedLM, **TASK_HEADS}
_ARCHITECTURES = {SEQUENCE_CLASSIFICATION: "ForSequenceClassification", TOKEN_CLASSIFICATION: "ForTokenClassification"}

TaskStudent = KDNASForSequenceClassification | KDNASForTokenClassification


def check_head(name_or_path: str, config: PretrainedConfig, head: str) -> str:
    """The kind of a head that is wanted of a checkpoint, told by its configuration before its weights are read.

    Args:
        name_or_path: Hub id or local directory, for errors.
        config: Its configuration.
        head: One of `HEADS`, or ``task`` for whichever of `TASK_HEADS` it has.

    Raises:
        ValueError: If the kind is unknown, or the checkpoint says that it has none of it.
    """
    if head != TASK and head not in HEADS:
        raise ValueError(f"head={head!r} is unknown; choose from {', '.join((TASK, *HEADS))}.")
    said = list(config.architectures or [])
    # heads of both kinds may have weights of the same names, as BERT's have
    kinds = [kind for kind, ending in _ARCHITECTURES.items() if any(name.endswith(ending) for name in said)]
    if head == TASK and kinds:
        return kinds[0]
    if head in TASK_HEADS and kinds and head not in kinds:
        raise ValueError(
            f"teacher={name_or_path!r} has no head for {head}, it is a {said[0]}; choose head={kinds[0]!r}."
        )
    if head == MASKED_LM:
        lacks = bool(said) and all(name.endswith("Model") and "LMHead" not in name for name in said)
    else:
        lacks = not kinds and (head == TASK or bool(said))
    if lacks:
        raise _no_head(name_or_path, head, f"it is a {said[0] if said else config.model_type}")
    return head


def load_head(name_or_path: str, revision: str | None, head: str) -> PreTrainedModel:
    """Load a checkpoint with the head that it was trained with.

    Args:
        name_or_path: Hub id or local directory.
        revision: Branch, tag or commit on the Hub.
        head: One of `HEADS`.

    Raises:
        ValueError: If weights of the head are missing.
    """
    model, info = HEADS[head].from_pretrained(
        name_or_path, revision=revision, dtype=torch.float32, output_loading_info=True
    )
    if info["missing_keys"]:
        raise _no_head(name_or_path, head, min(info["missing_keys"]))
    return model


def _no_head(name_or_path: str, head: str, why: str) -> ValueError:
    if head == MASKED_LM:
        remedy = "choose a teacher that has one, or leave the losses that need it out."
        return ValueError(f"teacher={name_or_path!r} has no masked language modeling head ({why}); {remedy}")
    remedy = "fine-tune it on the task first, as recipes/finetune.py does."
    what = "a task" if head == TASK else head
    return ValueError(f"teacher={name_or_path!r} has no head for {what} ({why}); {remedy}")


def has_task_head(model: PreTrainedModel) -> bool:
    """Whether a model classifies texts or tokens."""
    return type(model).__name__.endswith(tuple(_ARCHITECTURES.values()))


def task_head_of(model: PreTrainedModel) -> str:
    """Which kind of head a task model has.

    Raises:
        ValueError: If it is neither.
    """
    for kind, ending in _ARCHITECTURES.items():
        if type(model).__name__.endswith(ending):
            return kind
    raise ValueError(
        f"task_model is a {type(model).__name__}; give a {' or '.join('…' + e for e in _ARCHITECTURES.values())}."
    )


def add_task_head(student: KDNASModel, teacher_config: PretrainedConfig, kind: str, seed: int = 0) -> TaskStudent:
    """Put a head for the teacher's classes on a student, which becomes a part of the result.

    Args:
        student: The encoder.
        teacher_config: Of the fine-tuned teacher: its labels become the student's.
        kind: One of `TASK_HEADS`.
        seed: Decides the head's initial values. The global random state is left as it is.
    """
    config = student.config
    labels = _labels(teacher_config)
    config.num_labels = len(labels)
    config.id2label = labels
    config.label2id = {label: number for number, label in labels.items()}
    config.problem_type = "single_label_classification"
    head_class = KDNASForSequenceClassification if kind == SEQUENCE_CLASSIFICATION else KDNASForTokenClassification
    with torch.device("meta"):
        model = head_class(config)
    with torch.device("cpu"), drawing(seed):
        head: Any = model.classifier.to_empty(device="cpu")
        for module in head.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data.normal_(std=config.initializer_range)
                module.bias.data.zero_()
    model.kdnas = student
    return model


def check_classes(config: PretrainedConfig, who: str) -> None:
    """Refuse a head that does not choose one class of several.

    Args:
        config: Of the model.
        who: What the error calls the model.

    Raises:
        ValueError: If it scores, or gives a text many labels.
    """
    problem = getattr(config, "problem_type", None)
    if config.num_labels is None or config.num_labels < 2 or problem not in (None, "single_label_classification"):
        raise ValueError(
            f"losses: those on a task's labels are of one class out of several, and {who} has "
            f"num_labels={config.num_labels} and problem_type={problem!r}; leave them out."
        )


def check_labels(student: TaskStudent, teacher_config: PretrainedConfig) -> None:
    """Refuse a student whose classes are not the teacher's.

    Raises:
        ValueError: If they differ, with the first that does.
    """
    own, others = _labels(student.config), _labels(teacher_config)
    if own == others:
        return
    if len(own) != len(others):
        raise ValueError(
            f"the student has {len(own)} labels, the teacher {len(others)}; load it with num_labels={len(others)}."
        )
    number = next(number for number in others if own.get(number) != others[number])
    raise ValueError(
        f"label {number} is {own.get(number)!r} of the student and {others[number]!r} of the teacher; load the student "
        "with the teacher's id2label and label2id."
    )


def _labels(config: PretrainedConfig) -> dict[int, str]:
    named: Any = config.id2label or {}
    return {int(number): str(label) for number, label in named.items()}


def with_task_head(
    given: KDNASConfig | KDNASModel | TaskStudent, student: KDNASModel, teacher: PreTrainedModel | None, seed: int = 0
) -> TaskStudent:
    """A student with a head for its teacher's classes: its own, if it was given with one, else a new one.

    Args:
        given: What the student was made from.
        student: Its encoder.
        teacher: The fine-tuned teacher, if it has a head.
        seed: Decides a new head's initial values.

    Raises:
        ValueError: If there is no head on either side, or the two do not have the same classes.
    """
    if teacher is None and not isinstance(given, TaskStudent):
        raise ValueError(
            "losses: a student without a head gets one for the classes of its teacher, which has none; load a teacher "
            "that was fine-tuned on the task (load_teacher(…, head='sequence_classification' or "
            "'token_classification'), or give a student with a head."
        )
    if teacher is not None:
        check_classes(teacher.config, "the teacher")
    if isinstance(given, TaskStudent):
        check_classes(given.config, "the student")
        if teacher is not None:
            check_labels(given, teacher.config)
            if task_head_of(given) != task_head_of(teacher):
                raise ValueError(
                    f"the student is a {type(given).__name__}, the teacher a {type(teacher).__name__}; both must "
                    "classify texts, or both tokens."
                )
        return given
    assert teacher is not None
    return add_task_head(student, teacher.config, task_head_of(teacher), seed)
