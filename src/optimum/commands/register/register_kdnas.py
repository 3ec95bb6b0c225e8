"""Has `optimum-cli export onnx` know the students of kdnas_hf.

optimum-cli imports every file of this folder of the namespace package when it starts, whatever it was asked for. So
this one imports nothing of kdnas_hf until an export runs.
"""

from __future__ import annotations

import functools
from typing import Any

REGISTER_COMMANDS: list[Any] = []  # no command of our own

try:
    from optimum.commands.export.onnx import ONNXExportCommand
except ImportError:  # optimum without optimum-onnx has no such command
    pass
else:
    _run = ONNXExportCommand.run

    @functools.wraps(_run)
    def _register_and_run(self: Any) -> None:
        try:
            from kdnas_hf.export.optimum_onnx import register_with_optimum

            register_with_optimum()
        except ImportError as error:  # other models are exported all the same
            from optimum.utils import logging

            logging.get_logger(__name__).warning(f"Students of kdnas_hf cannot be exported: {error}")
        _run(self)

    ONNXExportCommand.run = _register_and_run
