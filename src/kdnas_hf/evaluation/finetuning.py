"""Fine-tunes any encoder on a task with a plain `Trainer`, and scores it in every language."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..data import embedded_teacher
from ..data.labels import IGNORED_LABEL
from ..distillation.labelled_texts import padding_collator
from ..distillation.teacher import EMBEDDED
from ..students import train_only
from ..students.task_heads import TASK_HEADS, TOKEN_CLASSIFICATION
from ..utils.attention import eager_attention
from ..utils.hardware import bf16_pays_off
from ..utils.progress import StepProgressCallback
from ..utils.random_state import drawing
from ..utils.tokenizers import load_tokenizer
from .arguments import FineTuningArguments
from .encoding import EncodedExamples, encode_examples
from .metrics import METRICS
from .task import Task
from .task_data import TaskData


@functools.cache
def _embedded_location() -> str:
    """The embedded teacher's checkpoint, verified once in a process."""
    return str(embedded_teacher())


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a model that is fine-tuned starts.

    Attributes:
        path: Hub id or local path; ``embedded`` is the teacher of the extra ``demo``.
        random_weights: Whether only its shape and its tokenizer are taken, and its weights start at random.
    """

    path: str
    random_weights: bool = False

    @property
    def location(self) -> str:
        """What `from_pretrained` takes."""
        return _embedded_location() if self.path == EMBEDDED else self.path

    def fingerprint(self) -> str:
        """What tells these weights from others: a hash of the files, or the commit on the Hub.

        Raises:
            ValueError: If there is no such model.
        """
        try:
            config = AutoConfig.from_pretrained(self.location)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path!r} cannot be loaded as a model: {error}") from error
        folder = Path(self.location)
        digest = hashlib.sha256(config.to_json_string(use_diff=False).encode() if self.random_weights else b"")
        if self.random_weights:
            return f"random-{digest.hexdigest()[:16]}"
        if not folder.is_dir():
            return str(getattr(config, "_commit_hash", None) or self.path)
        weights = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
        for path in weights:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, which pads on the right.

        Raises:
            ValueError: If there is none.
        """
        return load_tokenizer(self.location, field="path", require_fast=False)

    def load_encoder(self) -> PreTrainedModel:
        """The model without a head, in float32.

        Raises:
            ValueError: If there is no such model.
        """
        try:
            if self.random_weights:
                config = AutoConfig.from_pretrained(self.location)
                with drawing(0):
                    return AutoModel.from_config(config).float()
            return AutoModel.from_pretrained(self.location, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path!r} cannot be loaded as a model: {error}") from error

    def load_model(self, task: Task, labels: Sequence[str]) -> PreTrainedModel:
        """The model with a new head for the labels.

        Raises:
            ValueError: If there is no such model.
        """
        auto = TASK_HEADS[task.kind]
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        try:
            if self.random_weights:
                config = AutoConfig.from_pretrained(self.location, num_labels=len(labels), **names)
                return auto.from_config(config).float()
            # a head that was trained on another task is replaced
            return auto.from_pretrained(
                self.location, num_labels=len(labels), ignore_mismatched_sizes=True, dtype=torch.float32, **names
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path!r} cannot be loaded as a model: {error}") from error


class KeepBestCallback(TrainerCallback):
    """Stops a training that no longer gets better, and keeps the best trainable weights in memory.

    `load_best_model_at_end` would write the whole model, frozen embeddings and all, at every evaluation.

    Args:
        patience: Evaluations without a better score before the training stops.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.scores: list[float] = []
        self.best: dict[str, torch.Tensor] = {}

    @property
    def best_score(self) -> float:
        """The best score; -inf before the first evaluation."""
        return max(self.scores, default=-math.inf)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: Any = None, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Compare the score with the best before."""
        score = metrics["eval_score"]
        if score > self.best_score:
            self.best = {n: p.detach().to("cpu", copy=True) for n, p in model.named_parameters() if p.requires_grad}
        self.scores.append(score)
        if len(self.scores) - 1 - self.scores.index(self.best_score) >= self.patience:
            control.should_training_stop = True

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Give a model the best weights."""
        for name, parameter in model.named_parameters():
            if name in self.best:
                parameter.copy_(self.best[name])


class TrainingBarCallback(StepProgressCallback):
    """A bar for the training alone: evaluations are many and short."""

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Show nothing."""


class LengthGroupingTrainer(Trainer):
    """A `Trainer` that may group training texts by length and still reads evaluation sets in their order."""

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler:
        return SequentialSampler(eval_dataset)


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """A model that was fine-tuned.

    Attributes:
        model: With the weights that were best on the validation set.
        tokenizer: Its tokenizer.
        trainer: That trained it.
        validation_scores: After each pass over the training data.
        seconds: Wall-clock time of the training.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    trainer: Trainer
    validation_scores: list[float]
    seconds: float


def fine_tune(
    source: ModelSource, data: TaskData, args: FineTuningArguments, seed: int = 0, learning_rate: float | None = None
) -> FineTuned:
    """Fine-tune a model in a task's training language, stopped early by its score on the validation set.

    Args:
        source: Where the model starts.
        data: The task's data.
        args: The budget.
        seed: Of the head, of dropout and of the order of the data.
        learning_rate: One of ``args.learning_rates``, by default the first.
    """
    set_seed(seed)
    tokenizer = source.load_tokenizer()
    model = source.load_model(data.task, data.labels)
    if model.config.max_position_embeddings < args.max_length:
        raise ValueError(
            f"max_length={args.max_length} exceeds what {source.path!r} reads "
            f"({model.config.max_position_embeddings} positions)."
        )
    train = encode_examples(data.train.examples, tokenizer, args.max_length)
    base = cast(PreTrainedModel, model.base_model)
    if source.random_weights or args.train_word_embeddings:
        if args.weight_decay == 0:  # then it is exact: the other rows would not move
            occurring = sorted({token for ids in train.dataset["input_ids"] for token in ids})
            train_only(cast(Any, base), torch.tensor(occurring))
    else:
        base.get_input_embeddings().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = scoring_trainer(model, tokenizer, data, args, folder, seed, learning_rate, train.dataset)
        keep_best = KeepBestCallback(args.patience)
        trainer.add_callback(keep_best)
        # torch's fused attention takes several times as long in its backward pass in bf16 on a CPU
        started = time.monotonic()
        with eager_attention(model, trainer.args.bf16 and trainer.args.device.type == "cpu"):
            trainer.train()
        seconds = time.monotonic() - started
    keep_best.restore(model)
    return FineTuned(model, tokenizer, trainer, keep_best.scores, seconds)


def scoring_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
    args: FineTuningArguments,
    folder: str,
    seed: int = 0,
    learning_rate: float | None = None,
    train_dataset: Dataset | None = None,
) -> LengthGroupingTrainer:
    """A `Trainer` that scores a model on the validation set as ``eval_score``, and trains it if there is text to.

    Args:
        model: With a head for the task.
        tokenizer: Its tokenizer.
        data: The task's data.
        args: The budget.
        folder: Where the trainer may write.
        seed: Of dropout and of the order of the data.
        learning_rate: One of ``args.learning_rates``, by default the first.
        train_dataset: Encoded training examples.
    """
    validation = encode_examples(data.validation.examples, tokenizer, args.max_length)
    trainer = LengthGroupingTrainer(
        model=model,
        args=training_arguments(folder, args, seed, learning_rate, 0 if train_dataset is None else len(train_dataset)),
        train_dataset=train_dataset,
        eval_dataset=validation.dataset,
        data_collator=task_collator(data.task, tokenizer),
        compute_metrics=ScoreOnValidation(data, validation),
        preprocess_logits_for_metrics=best_labels,
    )
    for printing in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(printing)
    trainer.add_callback(TrainingBarCallback)
    return trainer


def score_languages(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, data: TaskData, max_length: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """Score a fine-tuned model on the test set of each language.

    Args:
        trainer: That trained the model; it reads evaluation sets in their order.
        tokenizer: The model's.
        data: The task's data.
        max_length: Longest example in tokens.

    Returns:
        The metric's values by language, and by language what was truncated (``truncated_texts``) and therefore could
        not be right (``unread_words``), where it was anything.
    """
    # all languages at once: batches are full, and of one length
    every = [example for part in data.test.values() for example in part.examples]
    encoded = encode_examples(every, tokenizer, max_length)
    predicted = predict_labels(trainer, encoded, data.labels)
    scores, truncated = {}, {}
    start = 0
    for language, part in data.test.items():
        here = slice(start, start + len(part.examples))
        start = here.stop
        scores[language] = data.score(part.examples, predicted[here])
        counts = {"truncated_texts": sum(encoded.truncated[here]), "unread_words": sum(encoded.unread[here])}
        if any(counts.values()):
            truncated[language] = counts
    return scores, truncated


def predict_labels(trainer: Trainer, encoded: EncodedExamples, labels: Sequence[str]) -> list[Any]:
    """The labels that a model predicts, as `EncodedExamples.name_labels` names them."""
    order = np.argsort(encoded.dataset["length"], kind="stable")  # texts of a length together: little padding
    trainer.compute_metrics, before = None, trainer.compute_metrics
    try:
        output = trainer.predict(cast(Any, encoded.dataset.select(order)))
    finally:
        trainer.compute_metrics = before
    place = {int(number): position for position, number in enumerate(order)}
    numbers, marked = cast(np.ndarray, output.predictions), cast(np.ndarray, output.label_ids)
    in_order = [place[number] for number in range(len(order))]
    if encoded.read_words is None:
        return encoded.name_labels(list(numbers[in_order]), labels)
    return encoded.name_labels([numbers[p][marked[p] != IGNORED_LABEL] for p in in_order], labels)


def training_arguments(
    folder: str | Path, args: FineTuningArguments, seed: int, learning_rate: float | None, examples: int
) -> TrainingArguments:
    """Arguments of a plain `Trainer` for the budget."""
    steps = math.ceil(examples / args.train_batch_size) * args.num_train_epochs
    bf16 = args.auto_bf16 and bf16_pays_off()
    by_length: dict[str, Any] = {"group_by_length": True}  # transformers 4
    if "train_sampling_strategy" in {f.name for f in dataclasses.fields(TrainingArguments)}:
        by_length = {"train_sampling_strategy": "group_by_length"}
    return TrainingArguments(
        output_dir=str(folder),
        learning_rate=args.learning_rates[0] if learning_rate is None else learning_rate,
        num_train_epochs=args.num_train_epochs,
        per_device_train_batch_size=args.train_batch_size,
        per_device_eval_batch_size=args.eval_batch_size,
        weight_decay=args.weight_decay,
        warmup_steps=round(steps * args.warmup_fraction),
        bf16=bf16,
        use_cpu=not torch.accelerator.is_available(),
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        seed=seed,
        **by_length,
    )


def task_collator(task: Task, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Pads a batch of a task's examples."""
    return padding_collator(tokenizer, tags=task.kind == TOKEN_CLASSIFICATION)


def best_labels(logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """The numbers of the most probable labels, ``(batch,)`` or ``(batch, sequence)``: logits need not be kept."""
    if isinstance(logits, tuple):
        logits = logits[0]
    return logits.argmax(-1)


class ScoreOnValidation:
    """``compute_metrics`` of a `Trainer`: the task's primary metric as ``score``.

    Args:
        data: The task's data.
        encoded: Its validation set, in the order in which it is predicted.
    """

    def __init__(self, data: TaskData, encoded: EncodedExamples) -> None:
        self.data = data
        self.encoded = encoded

    def __call__(self, predictions: Any) -> dict[str, float]:
        """The score of predicted numbers of labels."""
        numbers, marked = predictions.predictions, predictions.label_ids
        if self.encoded.read_words is not None:
            numbers = [row[row_labels != IGNORED_LABEL] for row, row_labels in zip(numbers, marked, strict=True)]
        predicted = self.encoded.name_labels(numbers, self.data.labels)
        values = self.data.score(self.data.validation.examples, predicted)
        return {"score": values[METRICS[self.data.task.metric].primary]}
