"""Exports a student with `transformers.exporters`, the exporter of transformers itself (5.23; experimental there).

What it writes lies where kdnas_hf's own export writes, and is read back by `transformers.exporters.ExportedModel`.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from packaging.version import Version
from transformers import PreTrainedModel

from ..utils.attention import eager_attention
from .backends import ONNX_FOLDER
from .export import report_path
from .onnx_graph import name_axes, sample_inputs

TRIED_WITH = "5.23"


def export_with_transformers(model: PreTrainedModel, folder: str | Path) -> Path:
    """Write a student, with or without a head, as ONNX.

    The graph takes `input_ids` and `attention_mask`, int64 `(batch_size, sequence_length)`, both dynamic, and gives
    what the model gives: `last_hidden_state`, `logits`, or `start_logits` and `end_logits`.

    Args:
        model: The student; left as it is.
        folder: The student's directory. `onnx/model.onnx` is written there, with its weights in
            `onnx/model.onnx.data`, and the configuration and `export.json` that `ExportedModel` reads.

    Returns:
        The file of the graph.

    Raises:
        ImportError: If transformers is of another version than the extra `exporters` installs, or if a package is
            missing that its exporter needs.

    Example:
        ```python
        export_with_transformers(model, "student")
        exported = ExportedModel.from_pretrained("student", subfolder="onnx")  # of transformers.exporters
        exported(**tokenizer("Ein Satz.", return_tensors="pt")).last_hidden_state
        ```
    """
    _check_version()
    from transformers.exporters import OnnxConfig, OnnxExporter

    exporter = OnnxExporter()
    dynamic = dict.fromkeys(range(2), torch.export.Dim.DYNAMIC)
    shapes = {"input_ids": dynamic, "attention_mask": dynamic}
    training = model.training
    model.eval()
    try:
        with eager_attention(model):  # plain operations, which the runtimes fuse best
            exported = exporter.export(model, sample_inputs(model), OnnxConfig(dynamic=True, dynamic_shapes=shapes))
    finally:
        model.train(training)
    name_axes(exported.program.graph)
    report_path(Path(folder), "onnx").unlink(missing_ok=True)  # of the graph that is replaced, which was checked
    target = Path(folder) / ONNX_FOLDER
    exported.save_pretrained(target)
    return target / "model.onnx"


def _check_version() -> None:
    """Refuse versions whose exporter is another one, or missing."""
    installed = Version(transformers.__version__)
    if (installed.major, installed.minor) != (5, 23):
        raise ImportError(
            f"transformers {installed} is installed, and transformers.exporters is experimental: its exporter is tried "
            f"with {TRIED_WITH} alone. pip install 'kdnas-hf[exporters]'."
        )
