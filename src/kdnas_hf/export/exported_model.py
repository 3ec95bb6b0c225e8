"""Exported students, loaded back in one line and called like the models that they were made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, PretrainedConfig
from transformers.modeling_outputs import (
    BaseModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import ModelOutput

from .backends import ONNXRUNTIME, RUNTIMES, TORCH, Backend, get_backend, require_runtime

# Fusing a layer norm with the sum before it hides the sum's input from the fusions of int8 maps: 1.3x slower students.
ONNXRUNTIME_DISABLED = "SkipLayerNormFusion"


class ExportedModel:
    """An exported encoder, with or without a head, on the CPU.

    Called with the tokenizer's ``input_ids`` and ``attention_mask`` it returns what the model in PyTorch does, as
    tensors where it was given tensors and as arrays where it was given arrays.

    Example:
        >>> model = ExportedModel.from_pretrained("runs/quickstart/student", backend="openvino-int8")
        >>> model(**tokenizer("Guten Morgen", return_tensors="pt")).last_hidden_state

    Args:
        path: The ``.onnx`` or ``.xml`` file.
        backend: What runs it.
        config: The model's configuration.
        threads: CPU threads; by default as many as the runtime chooses.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the runtime is not installed.
        ValueError: If the backend has no artefact.
    """

    device = "cpu"

    def __init__(
        self, path: str | Path, backend: str | Backend, config: PretrainedConfig, threads: int | None = None
    ) -> None:
        chosen = get_backend(backend)
        if chosen.runtime == TORCH:
            raise ValueError(f"backend={chosen.name!r} has no exported file; load the student with AutoModel.")
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist; make it: python recipes/export.py <student>.")
        require_runtime(chosen.runtime)
        self.path = Path(path)
        self.backend = chosen.description
        self.config = config
        self.threads = threads
        load = _load_onnxruntime if chosen.runtime == ONNXRUNTIME else _load_openvino
        self._run, self.output_names, version = load(self.path, chosen, threads)
        self.libraries = {RUNTIMES[chosen.runtime]: version}

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        backend: str | Backend = "openvino-int8",
        threads: int | None = None,
        **hub_arguments: Any,
    ) -> ExportedModel:
        """Load an artefact of a student's directory, or of its repository on the Hub.

        Args:
            name_or_path: Directory, or id on the Hub.
            backend: Which artefact, and what runs it: ``onnx``, ``onnx-int8``, ``onnx-int8-static``, ``openvino``,
                ``openvino-bf16`` or ``openvino-int8``.
            threads: CPU threads; by default as many as the runtime chooses.
            **hub_arguments: For `huggingface_hub.snapshot_download`, like ``revision`` and ``token``.

        Raises:
            FileNotFoundError: If it holds no such artefact.
            ImportError: If the runtime is not installed.
            ValueError: If the backend is unknown or has no artefact.
        """
        chosen = get_backend(backend)
        if chosen.file is None:
            raise ValueError(f"backend={chosen.name!r} has no exported file; load the student with AutoModel.")
        folder = Path(name_or_path)
        if not folder.is_dir():
            stem = str(Path(chosen.file).with_suffix(""))
            wanted = ["*.json", "*.py", f"{stem}.*"]
            folder = Path(snapshot_download(str(name_or_path), allow_patterns=wanted, **hub_arguments))
        # students are described by code of this package, never by that of a repository
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return cls(folder / chosen.file, chosen, config, threads)

    def __call__(
        self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None, **unread: Any
    ) -> ModelOutput:
        """Run the model.

        Args:
            input_ids: ``(batch, sequence)``, a tensor, an array or nested lists.
            attention_mask: ``(batch, sequence)``, by default nothing is masked.
            token_type_ids: Zeros, if given: tokenizers make them, and exported models do not read them.
            **unread: Nothing else is read.

        Returns:
            The output class that transformers has for such a model.

        Raises:
            TypeError: If something else is given.
            ValueError: If ``token_type_ids`` are not all zero.
        """
        if unread:
            raise TypeError(f"exported models read input_ids and attention_mask, not {', '.join(sorted(unread))}.")
        if token_type_ids is not None and np.asarray(token_type_ids).any():
            raise ValueError("token_type_ids: exported models read none; leave them out, or give zeros.")
        ids = np.ascontiguousarray(np.asarray(input_ids, dtype=np.int64))
        mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask, dtype=np.int64)
        outputs: dict[str, Any] = dict(zip(self.output_names, self._run(ids, np.ascontiguousarray(mask)), strict=True))
        if isinstance(input_ids, torch.Tensor):
            outputs = {name: torch.from_numpy(value) for name, value in outputs.items()}
        if "last_hidden_state" in outputs:
            return BaseModelOutput(**outputs)
        if "start_logits" in outputs:
            return QuestionAnsweringModelOutput(**outputs)
        kind = SequenceClassifierOutput if outputs["logits"].ndim == 2 else TokenClassifierOutput
        return kind(**outputs)

    def prepare(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> Callable[[], object]:
        """See `kdnas_hf.latency.Runner.prepare`."""
        return lambda: self._run(input_ids, attention_mask)

    def __repr__(self) -> str:
        return f"ExportedModel({str(self.path)!r}, {self.backend})"


_Loaded = tuple[Callable[[np.ndarray, np.ndarray], list[np.ndarray]], list[str], str]


def _load_onnxruntime(path: Path, backend: Backend, threads: int | None) -> _Loaded:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.add_session_config_entry("optimization.disable_specified_optimizers", ONNXRUNTIME_DISABLED)
    # threads that spin after a call would take the processor from whatever is called next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> list[np.ndarray]:
        return session.run(names, {"input_ids": input_ids, "attention_mask": attention_mask})

    return run, names, onnxruntime.__version__


def _load_openvino(path: Path, backend: Backend, threads: int | None) -> _Loaded:
    import openvino

    settings: Mapping[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        **({} if threads is None else {"INFERENCE_NUM_THREADS": threads}),
        # left to itself OpenVINO runs float32 in bfloat16 where the processor can; int8 may keep that for the rest
        **({} if backend.precision == "int8" else {"INFERENCE_PRECISION_HINT": _HINTS[backend.precision]}),
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", dict(settings))
    names = [output.get_any_name() for output in compiled.outputs]
    request = compiled.create_infer_request()

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> list[np.ndarray]:
        request.infer({"input_ids": input_ids, "attention_mask": attention_mask}, share_inputs=True)
        return [np.array(request.get_output_tensor(index).data) for index in range(len(names))]

    return run, names, openvino.__version__.split("-")[0]


_HINTS = {"float32": "f32", "bfloat16": "bf16"}
