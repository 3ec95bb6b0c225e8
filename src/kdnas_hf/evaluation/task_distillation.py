"""Task-specific distillation: a fine-tuned teacher teaches a student on the task's data."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, Trainer, TrainerCallback

from ..distillation import DistillationTrainer, DistillationTrainingArguments, Teacher
from ..students import KDNASModel
from ..utils.atomic_files import write_atomically
from ..utils.hardware import bf16_pays_off
from .arguments import EvaluationArguments
from .encoding import encode_examples
from .finetuning import FineTuned, KeepBestCallback, ModelSource, scoring_trainer
from .task_data import TaskData


class ScoreEachEpochCallback(TrainerCallback):
    """Scores the student on the validation set after each pass, and stops the training when it no longer gets better.

    Args:
        keep_best: Keeps the best weights.
        score: Scores the student.
    """

    def __init__(self, keep_best: KeepBestCallback, score: Callable[[], tuple[PreTrainedModel, float]]) -> None:
        self.keep_best = keep_best
        self.score = score

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score."""
        model, score = self.score()
        self.keep_best.on_evaluate(args, state, control, model=model, metrics={"eval_score": score})


def distil_on_task(
    source: ModelSource,
    teacher: FineTuned,
    data: TaskData,
    args: EvaluationArguments,
    seed: int,
    learning_rate: float,
) -> FineTuned:
    """Distil a fine-tuned teacher into a student on the task's training data, by ``args.task_losses``.

    The budget, the validation set and what is frozen are those of `fine_tune`.

    Args:
        source: The student.
        teacher: The teacher, fine-tuned on the task.
        data: The task's data.
        args: The budget and the losses.
        seed: Of the head, of dropout and of the order of the data.
        learning_rate: The learning rate.

    Raises:
        ValueError: If the student is no KDNAS encoder.
    """
    student = source.load_encoder()
    if not isinstance(student, KDNASModel):
        raise ValueError(
            f"task_distillation takes a KDNAS student, and {source.path!r} is a {type(student).__name__}; leave it out."
        )
    if not args.train_word_embeddings:
        student.get_input_embeddings().requires_grad_(False)
    tokenizer = source.load_tokenizer()
    train = encode_examples(data.train.examples, tokenizer, args.max_length)
    steps = math.ceil(len(train.dataset) / args.train_batch_size) * args.num_train_epochs
    task_teacher = Teacher(
        cast(PreTrainedModel, teacher.model.base_model), teacher.tokenizer, name="teacher", task_model=teacher.model
    )
    with tempfile.TemporaryDirectory() as folder:
        training_args = DistillationTrainingArguments(
            output_dir=folder,
            losses=args.task_losses,
            temperature=args.task_temperature,
            learning_rate=learning_rate,
            num_train_epochs=args.num_train_epochs,
            per_device_train_batch_size=args.train_batch_size,
            per_device_eval_batch_size=args.eval_batch_size,
            weight_decay=args.weight_decay,
            warmup_steps=round(steps * args.warmup_fraction),
            bf16=args.auto_bf16 and bf16_pays_off(),
            use_cpu=teacher.trainer.args.use_cpu,
            cache_teacher_states="false",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            seed=seed,
        )
        keep_best = KeepBestCallback(args.patience)
        trainer = DistillationTrainer(
            model=student, teacher=task_teacher, args=training_args, train_dataset=train.dataset
        )
        (model,) = trainer.pool.models.values()
        scorer = scoring_trainer(cast(PreTrainedModel, model), tokenizer, data, args, folder)

        def score() -> tuple[PreTrainedModel, float]:
            was_training = model.training
            metrics = scorer.evaluate()
            model.train(was_training)
            return cast(PreTrainedModel, model), metrics["eval_score"]

        trainer.add_callback(ScoreEachEpochCallback(keep_best, score))
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
    keep_best.restore(model)
    return FineTuned(cast(PreTrainedModel, model), tokenizer, scorer, keep_best.scores, seconds)


def save_tuned(tuned: FineTuned, path: Path) -> None:
    """Keep what fine-tuning changed: not word embeddings that were frozen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frozen = {name for name, parameter in tuned.model.named_parameters() if not parameter.requires_grad}
    # of the state dict: word embeddings that train in part are an ordinary table there
    trained = {n: v.detach().clone().contiguous() for n, v in tuned.model.state_dict().items() if n not in frozen}
    write_atomically(path, lambda temporary: save_file(trained, str(temporary)))


def load_tuned(source: ModelSource, data: TaskData, args: EvaluationArguments, path: Path, folder: str) -> FineTuned:
    """The model that `save_tuned` kept the changes of.

    Raises:
        ValueError: If they are those of another model.
    """
    model, tokenizer = source.load_model(data.task, data.labels), source.load_tokenizer()
    state = load_file(str(path))
    unknown = model.load_state_dict(state, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"{path} holds {unknown[0]}, which {source.path!r} does not have; remove it.")
    trainer: Trainer = scoring_trainer(model, tokenizer, data, args, folder)
    return FineTuned(model, tokenizer, trainer, [], 0.0)
