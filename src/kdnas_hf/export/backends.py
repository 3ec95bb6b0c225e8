"""The runtimes and precisions that a student can be deployed with, by name, and where their files go."""

from __future__ import annotations

from dataclasses import dataclass

ONNX_FOLDER = "onnx"
OPENVINO_FOLDER = "openvino"
TORCH = "torch"
ONNXRUNTIME = "onnxruntime"
OPENVINO = "openvino"
RUNTIMES = {TORCH: "PyTorch", ONNXRUNTIME: "ONNX Runtime", OPENVINO: "OpenVINO"}
EXTRAS = {ONNXRUNTIME: "onnx", OPENVINO: "openvino"}


@dataclass(frozen=True)
class Backend:
    """A runtime and a precision.

    Attributes:
        name: What it is called in arguments.
        runtime: ``torch``, ``onnxruntime`` or ``openvino``.
        precision: Of weights and products: ``float32``, ``bfloat16``, ``float16`` or ``int8``.
        compiled: Whether `torch.compile` compiles the model.
        static: Of int8: whether the ranges of activations are fixed by calibration.
        file: The artefact, relative to the student's directory, where the ecosystem looks for it; None without one.
    """

    name: str
    runtime: str
    precision: str
    compiled: bool = False
    static: bool = False
    file: str | None = None

    @property
    def description(self) -> str:
        """The backend in words, as latency reports have it."""
        how = ""
        if self.runtime == TORCH:
            how = " compiled" if self.compiled else " eager"
        ranges = " (static)" if self.static and self.runtime == ONNXRUNTIME else ""
        return f"{RUNTIMES[self.runtime]}{how}, {self.precision}{ranges}"


# The files' names are those of Optimum and transformers.js (onnx/) and of sentence-transformers (openvino/). OpenVINO
# decides about bfloat16 when it loads a model: one file serves both precisions.
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("torch", TORCH, "float32"),
        Backend("torch-compile", TORCH, "float32", compiled=True),
        Backend("torch-bf16", TORCH, "bfloat16"),
        Backend("torch-bf16-compile", TORCH, "bfloat16", compiled=True),
        Backend("torch-fp16", TORCH, "float16"),
        Backend("torch-fp16-compile", TORCH, "float16", compiled=True),
        Backend("onnx", ONNXRUNTIME, "float32", file=f"{ONNX_FOLDER}/model.onnx"),
        Backend("onnx-int8", ONNXRUNTIME, "int8", file=f"{ONNX_FOLDER}/model_quantized.onnx"),
        Backend(
            "onnx-int8-static", ONNXRUNTIME, "int8", static=True, file=f"{ONNX_FOLDER}/model_static_quantized.onnx"
        ),
        Backend("openvino", OPENVINO, "float32", file=f"{OPENVINO_FOLDER}/openvino_model.xml"),
        Backend("openvino-bf16", OPENVINO, "bfloat16", file=f"{OPENVINO_FOLDER}/openvino_model.xml"),
        Backend(
            "openvino-int8",
            OPENVINO,
            "int8",
            static=True,
            file=f"{OPENVINO_FOLDER}/openvino_model_qint8_quantized.xml",
        ),
    )
}


def get_backend(name: str | Backend) -> Backend:
    """A backend by name.

    Raises:
        ValueError: If there is none of that name.
    """
    if isinstance(name, Backend):
        return name
    if name not in BACKENDS:
        raise ValueError(f"backend={name!r} is unknown; choose from {', '.join(BACKENDS)}.")
    return BACKENDS[name]


def require_runtime(runtime: str) -> None:
    """Check that what exports for a runtime and runs it is installed.

    Raises:
        ImportError: If it is not; the message names the extra that brings it.
    """
    try:
        if runtime in (ONNXRUNTIME, OPENVINO):
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        if runtime == ONNXRUNTIME:
            import onnxruntime  # noqa: F401
        if runtime == OPENVINO:
            import nncf  # noqa: F401
            import openvino  # noqa: F401
    except ImportError as error:
        extra = EXTRAS[runtime]
        raise ImportError(
            f"{RUNTIMES[runtime]} needs {error.name}, which is not installed: pip install 'kdnas-hf[{extra}]'."
        ) from error
