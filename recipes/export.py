"""Export a student for ONNX Runtime or OpenVINO, check it against its checkpoint, and measure both beside the teacher.

    python recipes/export.py runs/quickstart/student --format openvino --int8
    python recipes/export.py runs/quickstart/student --format onnx --int8
    python recipes/export.py runs/intents/model --format openvino --int8 --task intents

Every field of `ExportArguments` is a flag and a key of a YAML file; those of `DataArguments` say where the text for
calibration and check comes from (by default the embedded one). The artefact is left in the student's ``onnx/`` or
``openvino/``, what was measured in its ``evidence/``. An artefact that is worse than its bounds is not kept, and the
exit status is not zero.
"""

from __future__ import annotations

import sys

from transformers.utils import logging

from kdnas_hf import DataArguments, document_export, parse_arguments, set_up_logging
from kdnas_hf.export import ExportArguments, ExportError, export_student

logger = logging.get_logger("kdnas_hf.recipes.export")


def main(argv: list[str] | None = None) -> None:
    """Export what the command line asks for."""
    args, data_args = parse_arguments((ExportArguments, DataArguments), argv, positional="student")
    set_up_logging()
    report = export_student(args, data_args)
    document_export(args.student, report)
    logger.info(report.to_markdown())
    load = f'ExportedModel.from_pretrained("{args.student}", backend="{report.record.backend}")'
    logger.info(f"load it: from kdnas_hf.export import ExportedModel; {load}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, ImportError, ExportError) as error:
        # bad input: the message says what to do, a traceback would hide it
        sys.exit(f"error: {error}")
