"""Makes the artefact of a backend from a model."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from ..latency import LatencyBenchmark, Runner, TorchRunner
from .backends import ONNXRUNTIME, TORCH, Backend, get_backend, require_runtime
from .embedding_table import quantize_word_embeddings
from .exported_model import ExportedModel
from .onnx_graph import export_onnx
from .quantization import Batch, quantize_onnx, quantize_openvino


def make_artefact(
    model: PreTrainedModel,
    folder: str | Path,
    backend: str | Backend,
    calibration: Sequence[Batch] | None = None,
    int8_embeddings: bool = True,
    reduce_range: bool = False,
    graph: str | Path | None = None,
) -> Path:
    """Write the artefact of a backend where the ecosystem looks for it; it is there whole or not at all.

    Args:
        model: The model, on the CPU in float32.
        folder: The student's directory.
        backend: What will run it; one that has a file.
        calibration: Real text; needed where the ranges of activations are fixed.
        int8_embeddings: Of int8: whether the word embeddings are quantized as well, each row with its own scale.
        reduce_range: See `quantize_onnx`.
        graph: The model's ONNX graph, where it was exported before.

    Returns:
        The file.

    Raises:
        ImportError: If the runtime is not installed.
        ValueError: If the backend has no artefact, or needs text that is not given.
    """
    chosen = get_backend(backend)
    if chosen.file is None:
        raise ValueError(f"backend={chosen.name!r} runs the checkpoint itself: there is nothing to export.")
    if chosen.static and not calibration:
        raise ValueError(f"backend={chosen.name!r} needs text for calibration.")
    require_runtime(chosen.runtime)
    target = Path(folder) / chosen.file
    target.parent.mkdir(parents=True, exist_ok=True)
    vocabulary = model.config.vocab_size
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as temporary:
        source = Path(graph) if graph else Path(temporary) / "graph.onnx"
        if graph is None:
            export_onnx(model, source)
        made = Path(temporary) / "made"
        made.mkdir()
        if chosen.runtime == ONNXRUNTIME and chosen.precision == "int8":
            ranges = calibration if chosen.static else None
            quantize_onnx(source, made / target.name, vocabulary, ranges, int8_embeddings, reduce_range)
        elif chosen.runtime == ONNXRUNTIME:
            # a graph with weights beside it knows their file by name: it is written anew, not renamed
            _copy_graph(source, made / target.name)
        elif chosen.precision == "int8":
            if int8_embeddings:
                table = Path(temporary) / "table.onnx"
                quantize_word_embeddings(source, table, vocabulary)
                source = table
            quantize_openvino(source, made / target.name, calibration or [])
        else:
            import openvino

            openvino.save_model(
                openvino.Core().read_model(str(source)), str(made / target.name), compress_to_fp16=False
            )
        for path in made.iterdir():
            path.chmod(0o644)
            os.replace(path, target.parent / path.name)
    return target


def artefact_files(folder: str | Path, backend: str | Backend) -> list[Path]:
    """The files of a backend's artefact that are there: graph, and weights where they lie beside it."""
    chosen = get_backend(backend)
    if chosen.file is None:
        return []
    path = Path(folder) / chosen.file
    return [file for file in (path, path.with_suffix(".bin"), Path(f"{path}.data")) if file.is_file()]


def make_runner(
    model: PreTrainedModel,
    backend: str | Backend,
    folder: str | Path,
    threads: int = 1,
    device: str = "cpu",
    graph: str | Path | None = None,
) -> Runner:
    """A model as a backend runs it, for latency: int8 is calibrated with random text.

    Args:
        model: The model in float32; its weights may be random, as latency depends on its shape alone.
        backend: The backend.
        folder: Where the artefact goes.
        threads: CPU threads.
        device: A torch device, for backends of PyTorch.
        graph: The model's ONNX graph, where it was exported before.
    """
    chosen = get_backend(backend)
    if chosen.runtime == TORCH:
        return TorchRunner(model, chosen.precision, chosen.compiled, device)
    batches = []
    for sequence_length in (16, 32):
        ids, mask = LatencyBenchmark(batch_size=2).dummy_inputs(model.config, sequence_length)
        batches.append({"input_ids": ids, "attention_mask": mask})
    path = make_artefact(model, folder, chosen, batches, graph=graph)
    return ExportedModel(path, chosen, model.config, threads)


def _copy_graph(source: Path, target: Path) -> None:
    if not Path(f"{source}.data").exists():
        shutil.copyfile(source, target)
        return
    import onnx

    from .embedding_table import save_onnx

    save_onnx(onnx.load(str(source)), target)
