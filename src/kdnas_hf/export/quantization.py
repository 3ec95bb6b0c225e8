"""Linear maps in int8: by ONNX Runtime's quantizer, and by NNCF for OpenVINO."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .embedding_table import quantize_word_embeddings, save_onnx

Batch = dict[str, np.ndarray]


def quantize_onnx(
    source: str | Path,
    target: str | Path,
    vocabulary: int,
    calibration: Sequence[Batch] | None = None,
    int8_embeddings: bool = True,
    reduce_range: bool = False,
) -> None:
    """Quantize the linear maps of an ONNX graph, a scale for each output, and the word embeddings, one for each row.

    Args:
        source: The graph, as `export_onnx` writes it.
        target: The new file.
        vocabulary: ``vocab_size``.
        calibration: Real text; given, the ranges of activations are fixed by it (static), else they are measured in
            each call (dynamic).
        int8_embeddings: Whether the word embeddings are quantized as well.
        reduce_range: Weights in 7 bits, which x86 processors without VNNI instructions need: their products saturate.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self, batches: Sequence[Batch]) -> None:
            self._batches = iter(batches)

        def get_next(self) -> Batch | None:
            return next(self._batches, None)

    with tempfile.TemporaryDirectory() as folder, _quiet():
        maps = Path(folder) / "maps.onnx"
        common: dict[str, Any] = {
            "per_channel": True,
            "reduce_range": reduce_range,
            "weight_type": QuantType.QInt8,
            "op_types_to_quantize": ["MatMul", "Gemm"],
            "use_external_data_format": Path(f"{source}.data").exists(),
        }
        if calibration is None:
            quantize_dynamic(str(source), str(maps), **common)
        else:
            quantize_static(
                str(source),
                str(maps),
                Reader(calibration),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"MatMulConstBOnly": True},
                **common,
            )
        if int8_embeddings:
            quantize_word_embeddings(maps, target, vocabulary)
        else:
            save_onnx(onnx.load(str(maps)), target)


def quantize_openvino(source: str | Path, target: str | Path, calibration: Sequence[Batch]) -> None:
    """Quantize a graph to int8 with NNCF: weights per channel, activations in ranges that real text has.

    Args:
        source: An ONNX graph; its embeddings stay as they are in it.
        target: The new ``.xml`` file; the weights go beside it, ``.bin``.
        calibration: Batches of real text.
    """
    import nncf
    import openvino

    with _quiet():
        quantized = nncf.quantize(
            openvino.Core().read_model(str(source)),
            nncf.Dataset(calibration),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
        )
        openvino.save_model(quantized, str(target), compress_to_fp16=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantizers' progress bars and advice."""
    loggers = [logging.getLogger(name) for name in ("nncf", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
