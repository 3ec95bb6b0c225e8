"""Students as they are deployed: ONNX Runtime and OpenVINO, float32 and int8, each checked against PyTorch.

`optimum_onnx` and `transformers_exporters` are adapters to other exporters; nothing imports them unasked.
"""

from .architecture_latencies import ArchitectureLatencies
from .arguments import ExportArguments
from .artefacts import artefact_files, make_artefact, make_runner
from .backends import BACKENDS, Backend, get_backend, require_runtime
from .budgets import Budget, parse_latency
from .calibration import calibration_texts, text_batches
from .check import ArtefactCheck, compare_outputs
from .embedding_table import quantize_rows, quantize_word_embeddings
from .export import ArtefactRecord, ExportError, ExportReport, export_student, load_with_head, read_exports
from .exported_model import ExportedModel
from .latency_model import LatencyModel
from .memory import peak_memory_mb
from .onnx_graph import export_onnx
from .quantization import quantize_onnx, quantize_openvino
from .score import mean_score
from .shape_costs import Sizes, shape_costs

__all__ = [
    "BACKENDS",
    "ArchitectureLatencies",
    "ArtefactCheck",
    "ArtefactRecord",
    "Backend",
    "Budget",
    "ExportArguments",
    "ExportError",
    "ExportReport",
    "ExportedModel",
    "LatencyModel",
    "Sizes",
    "artefact_files",
    "calibration_texts",
    "compare_outputs",
    "export_onnx",
    "export_student",
    "get_backend",
    "load_with_head",
    "make_artefact",
    "make_runner",
    "mean_score",
    "parse_latency",
    "peak_memory_mb",
    "quantize_onnx",
    "quantize_openvino",
    "quantize_rows",
    "quantize_word_embeddings",
    "read_exports",
    "require_runtime",
    "shape_costs",
    "text_batches",
]
