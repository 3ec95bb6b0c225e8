"""Progress bars of trainings."""

from __future__ import annotations

from typing import Any

from transformers.trainer_callback import ProgressCallback


class StepProgressCallback(ProgressCallback):
    """Trainer's progress bar without its dump of every log entry."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss beside the bar."""
        if state.is_world_process_zero and self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4f}")
