"""Makes students known to Optimum's ONNX exporter (optimum-onnx 0.1, transformers 4.57).

Nothing is registered by an import, of kdnas_hf or of this module: call `register_with_optimum()` before
`ORTModelForX.from_pretrained(…, export=True)` or `main_export`. `optimum-cli export onnx` does so by itself, see
`optimum/commands/register/register_kdnas.py`.
"""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..students import KDNASConfig, KDNASPreTrainedModel

try:
    from optimum.exporters.onnx.model_configs import XLMRobertaOnnxConfig
    from optimum.exporters.onnx.model_patcher import ModelPatcher
    from optimum.exporters.tasks import TasksManager
except ImportError as error:
    raise ImportError(
        f"Optimum's ONNX exporter is not to be had ({error}); pip install 'kdnas-hf[optimum]' in an environment of "
        "its own, since it brings transformers 4.57."
    ) from error

# Optimum's names of what the five classes of students do
TASKS = ("feature-extraction", "fill-mask", "text-classification", "token-classification", "question-answering")
TRIED_WITH = "0.1."


class _EagerAttention(ModelPatcher):
    """Exports with attention in plain operations, which ONNX Runtime fuses better than torch's fused attention."""

    def __enter__(self) -> Any:
        self._attention = self._model.config._attn_implementation
        self._model.config._attn_implementation = "eager"
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._model.config._attn_implementation = self._attention


class KDNASOnnxConfig(XLMRobertaOnnxConfig):
    """How a student is exported: `input_ids` and `attention_mask` `(batch_size, sequence_length)`, both dynamic."""

    ATOL_FOR_VALIDATION = 1e-4
    _MODEL_PATCHER = _EagerAttention


def register_with_optimum() -> None:
    """Register students with Optimum's `TasksManager`; doing so again changes nothing.

    Besides the configuration, `TasksManager` has to learn that students are models of transformers: it goes by the
    module that a class is defined in.

    Raises:
        ImportError: If optimum-onnx is of another version than the extra `optimum` installs. Importing this module
            raises the same where it is missing.
    """
    _check_version()
    TasksManager.create_register("onnx", overwrite_existing=True)(KDNASConfig.model_type, *TASKS)(KDNASOnnxConfig)
    guess = TasksManager._infer_library_from_model_or_model_class
    if getattr(guess, "knows_students", False):
        return

    @functools.wraps(guess)
    def infer_library(
        cls: type[TasksManager],
        model: Any = None,
        model_class: type | None = None,
    ) -> str:
        if isinstance(model, KDNASPreTrainedModel):
            return "transformers"
        if model_class is not None and issubclass(model_class, KDNASPreTrainedModel):
            return "transformers"
        return guess(model=model, model_class=model_class)

    infer_library.knows_students = True  # type: ignore[attr-defined]
    TasksManager._infer_library_from_model_or_model_class = classmethod(infer_library)


def _check_version() -> None:
    try:
        installed = version("optimum-onnx")
    except PackageNotFoundError:
        installed = "none"
    if not installed.startswith(TRIED_WITH):
        raise ImportError(
            f"optimum-onnx {installed} is installed, and students are exported by {TRIED_WITH}*; pip install "
            "'kdnas-hf[optimum]' in an environment of its own, since it brings transformers 4.57."
        )
