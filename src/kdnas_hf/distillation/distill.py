"""`distill`: a whole distillation, stage after stage, that resumes wherever it was killed."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..students import KDNASConfig, KDNASModel, train_parts
from ..utils.atomic_files import write_atomically
from ..utils.checkpoints import last_whole_checkpoint
from .arguments import DistillationTrainingArguments
from .labelled_texts import check_labelled_texts
from .pool import StudentPool
from .stages import Stage
from .student_outputs import TaskStudent
from .teacher import Teacher
from .trainer import DistillationTrainer

logger = logging.get_logger(__name__)

FINISHED = "finished"


def distill(
    model: KDNASConfig | KDNASModel | TaskStudent | Mapping[str, Any],
    teacher: Teacher,
    args: DistillationTrainingArguments,
    train_dataset: Any,
    eval_dataset: Any = None,
    **kwargs: Any,
) -> DistillationTrainer:
    """Distil in the stages that ``args`` name, each by a `DistillationTrainer` of its own.

    A stage begins with the students of the one before and a fresh optimizer. Started again in the same ``output_dir``,
    it goes on from the last checkpoint of its stage; several stages keep theirs in ``stage_<n>/``.

    Args:
        model: What `DistillationTrainer` takes, or several students by name.
        teacher: The teacher.
        args: What to learn and how.
        train_dataset: The text; where stages name theirs, a mapping of texts by these names.
        eval_dataset: Held-out text.
        **kwargs: What else `DistillationTrainer` takes, in each stage.

    Returns:
        The trainer of the last stage, or of that in which the last student was dropped.

    Raises:
        ValueError: If a stage names a text that is not there, or does not fit the students; before the first begins.
    """
    kwargs["callbacks"] = list(kwargs.get("callbacks") or ())
    stages = args.stage_list
    texts = [_text_of(stage, train_dataset) for stage in stages]
    students = dict(model) if isinstance(model, Mapping) else {"student": model}
    given = {name for name, student in students.items() if not isinstance(student, KDNASConfig)}
    if len(stages) > 1:
        _check_stages(stages, texts, students, teacher, args)
    dropped: dict[str, str] = {}
    for number, (stage, text) in enumerate(zip(stages, texts, strict=True), start=1):
        stage_args = stage.arguments(args)
        if len(stages) > 1:
            stage_args.output_dir = str(Path(args.output_dir or ".") / f"stage_{number}")
            logger.info(f"stage {number} of {len(stages)}: {stage.as_dict()}")
        pool = _pool_of(stage, students, teacher, stage_args)
        pool.dropped = dict(dropped)
        for name, member in pool.items():
            member.given = name in given
        trainer = DistillationTrainer(pool, teacher, stage_args, text, eval_dataset, **kwargs)
        finished = Path(stage_args.output_dir or ".") / FINISHED
        if len(stages) > 1 and _from_main(trainer, (finished / TRAINER_STATE_NAME).is_file()):
            trainer.restore(finished)
            trainer.state = TrainerState.load_from_json(str(finished / TRAINER_STATE_NAME))
        else:
            train_or_resume(trainer)
            if len(stages) > 1:
                trainer.save_model(str(finished), _internal_call=True)
                if trainer.is_world_process_zero():  # last of all: it says that the stage is finished
                    write_atomically(finished / TRAINER_STATE_NAME, trainer.state.save_to_json)  # type: ignore[arg-type]
        students, dropped = _models_of(trainer.pool, students), trainer.pool.dropped
        if len(dropped) == len(students):
            break
    return trainer


def _pool_of(
    stage: Stage, students: Mapping[str, Any], teacher: Teacher, stage_args: DistillationTrainingArguments
) -> StudentPool:
    pool = StudentPool.create(students, teacher, stage_args)
    for _, member in pool.items():
        train_parts(member.model, list(stage.trains))
    return pool


def _models_of(pool: StudentPool, students: Mapping[str, Any]) -> dict[str, Any]:
    """The students that a pool leaves; of those in other processes only the shape is needed here."""
    return {name: pool.models.get(name, student) for name, student in students.items()}


def _check_stages(
    stages: Sequence[Stage],
    texts: Sequence[Any],
    students: Mapping[str, Any],
    teacher: Teacher,
    args: DistillationTrainingArguments,
) -> None:
    """Refuse now what a later stage would stop at, after hours."""
    students = {name: copy.deepcopy(student) for name, student in students.items()}
    for stage, text in zip(stages, texts, strict=True):
        pool = _pool_of(stage, students, teacher, stage.arguments(args))
        check_labelled_texts("train_dataset", text, pool)
        students = _models_of(pool, students)


def train_or_resume(trainer: DistillationTrainer) -> bool:
    """Train, from the last whole checkpoint in the trainer's ``output_dir`` if there is one.

    Returns:
        False if that checkpoint is the last of the training: it is loaded, and no step is made.
    """
    folder = trainer.args.output_dir or "."
    found = last_whole_checkpoint(folder, trainer.args.world_size) if trainer.args.process_index == 0 else None
    checkpoint = _from_main(trainer, None if found is None else str(found))
    if checkpoint is None:
        trainer.train()
        return True
    logger.info(f"resuming from {checkpoint}")
    state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    if trainer.restore(checkpoint) and state.global_step < state.max_steps:
        trainer.train(resume_from_checkpoint=checkpoint)
        return True
    trainer.state = state
    return False


def _from_main(trainer: DistillationTrainer, value: Any) -> Any:
    return value if trainer.args.world_size == 1 else broadcast_object_list([value])[0]


def _text_of(stage: Stage, texts: Any) -> Any:
    if not isinstance(texts, Mapping):
        if stage.dataset is not None:
            raise ValueError(
                f"stages: dataset={stage.dataset!r} names one of several texts; give train_dataset as a mapping."
            )
        return texts
    name = next(iter(texts)) if stage.dataset is None else stage.dataset
    if name not in texts:
        raise ValueError(f"stages: dataset={name!r} is not one of the texts {', '.join(map(str, texts))}.")
    return texts[name]
