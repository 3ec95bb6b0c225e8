"""`ModelCardCallback`: what a training knows of itself, on the card of the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..distillation import DistillationTrainingArguments
from .evidence import TrainingSetup, record_training
from .model_card import write_model_card


class ModelCardCallback(TrainerCallback):
    """Fills the card of the student that a `DistillationTrainer` distils.

    It keeps what the trainer logs and measures. The card is written when the trainer pushes, or by `write_card`.

    Args:
        setup: Of the distillation.

    Example:
        ```python
        setup = TrainingSetup(teacher, teacher_args, data_args, sentences=len(texts))
        trainer = DistillationTrainer(..., callbacks=[ModelCardCallback(setup)])
        trainer.train()
        trainer.evaluate()
        trainer.push_to_hub()
        ```
    """

    def __init__(self, setup: TrainingSetup) -> None:
        self.setup = setup
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
        tokens = max((entry.get("trained_tokens", 0) for entry in self.log_history), default=0)
        measured: dict[str, Any] = next((entry for entry in reversed(self.log_history) if "eval_r2" in entry), {})
        record_training(student, self.setup, self.args, tokens, measured, self.log_history)
        return write_model_card(student)
