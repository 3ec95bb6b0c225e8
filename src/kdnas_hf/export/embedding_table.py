"""The word embeddings of an exported graph in int8, each row with a scale of its own.

A multilingual student is mostly its table: 250,037 rows of 384 are 384 MB in float32 and 97 MB so. A row is scaled by
its own greatest magnitude, so that it loses a 254th of that at most; one scale for all rows, which is what quantizers
give a look-up, would leave little of the rare words' small rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .onnx_graph import MAX_PROTOBUF_BYTES

LEVELS = 127


def quantize_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round a table to int8, symmetrically, each row to its own scale.

    Args:
        table: ``(rows, size)``, float32.

    Returns:
        int8 ``(rows, size)`` and float32 scales ``(rows, 1)``, whose product is nearly the table.
    """
    scales = np.abs(table).max(axis=1, keepdims=True).astype(np.float32) / LEVELS
    divisors = np.where(scales == 0, 1, scales)
    return np.rint(table / divisors).astype(np.int8), scales


def quantize_word_embeddings(source: str | Path, target: str | Path, vocabulary: int) -> bool:
    """Store the word embeddings of an ONNX graph in int8, with a scale for each row.

    Args:
        source: The graph, as `export_onnx` writes it.
        target: The new file.
        vocabulary: Rows of the table, ``vocab_size``.

    Returns:
        Whether there was such a table; the graph is written anyway.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model: Any = onnx.load(str(source))
    graph = model.graph
    tables = {tensor.name: tensor for tensor in graph.initializer if tensor.dims and tensor.dims[0] == vocabulary}
    (ids,) = [value.name for value in graph.input if value.name == "input_ids"]
    lookups = [
        (place, node)
        for place, node in enumerate(graph.node)
        if node.op_type == "Gather" and node.input[0] in tables and node.input[1] == ids
    ]
    for place, node in reversed(lookups):
        name, result = node.input[0], node.output[0]
        values, scales = quantize_rows(numpy_helper.to_array(tables[name]).astype(np.float32))
        if not any(tensor.name == f"{name}_int8" for tensor in graph.initializer):
            graph.initializer.append(numpy_helper.from_array(values, f"{name}_int8"))
            graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scales"))
        graph.node.remove(node)
        made = [
            helper.make_node("Gather", [f"{name}_int8", ids], [f"{result}_int8"], f"{node.name}_int8"),
            helper.make_node("Cast", [f"{result}_int8"], [f"{result}_cast"], f"{node.name}_cast", to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{name}_scales", ids], [f"{result}_scales"], f"{node.name}_scales"),
            helper.make_node("Mul", [f"{result}_cast", f"{result}_scales"], [result], f"{node.name}_scaled"),
        ]
        for offset, new in enumerate(made):
            graph.node.insert(place + offset, new)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    save_onnx(model, target)
    return bool(lookups)


def save_onnx(model: Any, path: str | Path) -> None:
    """Write an ONNX model, its weights beside it where they exceed what protobuf holds."""
    import onnx

    path = Path(path)
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > MAX_PROTOBUF_BYTES
    onnx.save(model, str(path), save_as_external_data=large, all_tensors_to_one_file=True, location=f"{path.name}.data")
