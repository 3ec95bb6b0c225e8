"""Log lines of the recipes, written so that they and the progress bars do not break each other."""

from __future__ import annotations

import logging
import warnings

import optuna
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging


class ProgressBarHandler(logging.Handler):
    """Writes log lines above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            tqdm.write(self.format(record))
        except Exception:
            self.handleError(record)


def set_up_logging(is_main_process: bool = True, level: int = logging.INFO) -> None:
    """Show kdnas_hf's log lines on standard output, those of the other processes only if they are warnings."""
    handler = ProgressBarHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("kdnas_hf")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level if is_main_process else logging.WARNING)
    transformers_logging.set_verbosity_error()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", message=".*pin_memory.*", category=UserWarning)
