"""`ModelCardCallback`: what a training knows of itself, on the card of the student."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data import DataArguments
from ..distillation import DistillationTrainingArguments, Teacher, TeacherArguments
from .evidence import record_training
from .model_card import write_model_card


class ModelCardCallback(TrainerCallback):
    """Fills the card of the student that a `DistillationTrainer` distils.

    It keeps what the trainer logs and measures. The card is written when the trainer pushes, or by `write_card`.

    Args:
        teacher: The teacher.
        teacher_args: As which it was asked for: its id and revision are named on the card.
        data_args: The text.
        languages: Languages of the text, where they are known.
        sentences: Training texts.
        command: The command that runs; by default that of this process.

    Example:
        ```python
        trainer = DistillationTrainer(..., callbacks=[ModelCardCallback(teacher, teacher_args, data_args)])
        trainer.train()
        trainer.evaluate()
        trainer.push_to_hub()
        ```
    """

    def __init__(
        self,
        teacher: Teacher,
        teacher_args: TeacherArguments,
        data_args: DataArguments,
        languages: Iterable[str] = (),
        sentences: int = 0,
        command: Sequence[str] | None = None,
    ) -> None:
        self.teacher = teacher
        self.teacher_args = teacher_args
        self.data_args = data_args
        self.languages = list(dict.fromkeys(languages))
        self.sentences = sentences
        self.command = list(sys.argv if command is None else command)
        self.args: DistillationTrainingArguments | None = None
        self.log_history: list[dict[str, Any]] = []

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep what was logged so far: training losses and evaluations."""
        self._keep(args, state)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep what was logged before an interruption."""
        self._keep(args, state)

    def _keep(self, args: TrainingArguments, state: TrainerState) -> None:
        assert isinstance(args, DistillationTrainingArguments)
        self.args, self.log_history = args, list(state.log_history)

    def write_card(self, student: str | Path) -> Path:
        """Write evidence and card into a student's directory.

        Raises:
            ValueError: If nothing was trained yet.
        """
        if self.args is None:
            raise ValueError("nothing was trained yet: there is nothing to write a card of.")
        measured: dict[str, Any] = next((entry for entry in reversed(self.log_history) if "eval_r2" in entry), {})
        layer = "eval_r2_layer_"
        record_training(
            student,
            teacher=self.teacher,
            teacher_args=self.teacher_args,
            data_args=self.data_args,
            training_args=self.args,
            languages=self.languages,
            sentences=self.sentences,
            tokens=max((entry.get("trained_tokens", 0) for entry in self.log_history), default=0),
            r2=measured.get("eval_r2"),
            r2_per_layer={key.removeprefix(layer): v for key, v in measured.items() if key.startswith(layer)},
            log_history=self.log_history,
            command=self.command,
        )
        return write_model_card(student)
