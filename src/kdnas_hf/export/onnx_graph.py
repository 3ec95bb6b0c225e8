"""From a model in PyTorch to an ONNX graph with dynamic batch and sequence."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..utils.attention import eager_attention

OUTPUT_NAMES = ("last_hidden_state", "logits", "start_logits", "end_logits")
INPUT_NAMES = ("input_ids", "attention_mask")
AXES = ("batch_size", "sequence_length")
MAX_PROTOBUF_BYTES = 1_900_000_000
OPSET = 18


class _Encoder(nn.Module):
    """A model that takes what is exported as inputs, and returns what is exported as outputs."""

    def __init__(self, model: PreTrainedModel, outputs: list[str]) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return tuple(outputs[name] for name in self.outputs)


def export_onnx(model: PreTrainedModel, path: str | Path) -> list[str]:
    """Write a model as an ONNX graph, by `torch.onnx.export` from the exported program.

    Attention is exported eagerly, in plain operations: the runtimes fuse those better than what stands for torch's
    fused attention. Inputs are ``input_ids`` and ``attention_mask``, int64 ``(batch_size, sequence_length)``, both
    dynamic.

    Args:
        model: An encoder with or without a head, on the CPU in float32; left as it is.
        path: The file. Beside it comes ``<file>.data`` with the weights where they exceed what protobuf holds.

    Returns:
        Names of the outputs: ``last_hidden_state``, or ``logits``, or ``start_logits`` and ``end_logits``.

    Raises:
        ValueError: If the model is not in float32, or gives nothing that is exported.
    """
    path = Path(path)
    dtypes = {p.dtype for p in model.parameters()}
    if dtypes != {torch.float32}:
        raise ValueError(f"the model is in {', '.join(str(d) for d in dtypes)}; load it with dtype='float32'.")
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs = sample_inputs(model)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), _quiet(), eager_attention(model):
            given = model(**inputs)
            outputs = [name for name in OUTPUT_NAMES if name in given]
            if not outputs:
                raise ValueError(f"{type(model).__name__} gives none of {', '.join(OUTPUT_NAMES)}.")
            dynamic = dict.fromkeys(range(2), torch.export.Dim.DYNAMIC)
            program: Any = torch.onnx.export(
                _Encoder(model, outputs).eval(),
                (),
                kwargs=inputs,
                dynamic_shapes=dict.fromkeys(INPUT_NAMES, dynamic),
                input_names=list(INPUT_NAMES),
                output_names=outputs,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        model.train(training)
    name_axes(program.model.graph)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    program.save(str(path), external_data=size > MAX_PROTOBUF_BYTES)
    return outputs


def sample_inputs(model: PreTrainedModel) -> dict[str, Any]:
    """Two texts to record a graph of, ``input_ids`` and ``attention_mask`` ``(2, 8)``.

    One is padded: a graph that was recorded of full texts alone may lack the mask.
    """
    padding = model.config.pad_token_id or 0
    tokens = torch.arange(2 * 8, device=model.device).reshape(2, 8)
    ids = tokens % max(model.config.vocab_size - padding - 1, 1) + padding + 1
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids.masked_fill(mask == 0, padding), "attention_mask": mask}


def name_axes(graph: Any) -> None:
    """Give the dynamic axes of a graph's inputs and outputs the names that Optimum gives them, not those of torch."""
    import onnx_ir

    names = dict(zip((str(size) for size in graph.inputs[0].shape), AXES, strict=True))
    for value in (*graph.inputs, *graph.outputs):
        value.shape = onnx_ir.Shape([size if isinstance(size, int) else names.get(str(size)) for size in value.shape])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says about itself."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
