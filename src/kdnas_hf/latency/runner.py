"""What a latency is measured of: a model in some runtime, called through one interface."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EAGER_FLOAT32 = "PyTorch eager, float32"


@runtime_checkable
class Runner(Protocol):
    """A model in a runtime.

    Attributes:
        backend: What runs it and in which precision, for reports.
        config: The model's configuration; ``vocab_size`` and ``max_position_embeddings`` are read.
        threads: CPU threads that it was built for; None where they can be set from outside (PyTorch).
        device: Where it runs.
        libraries: Versions of what runs it, beside torch and transformers.
    """

    backend: str
    config: Any
    threads: int | None
    device: str
    libraries: dict[str, str]

    def prepare(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> Callable[[], object]:
        """What runs the model once on ``(batch, sequence)`` int64 arrays.

        It returns when the result is there; on CUDA, when the work is queued.
        """
        ...


def check_device(device: str) -> None:
    """Check that a device can be timed, and is there.

    Raises:
        ValueError: If it cannot be had.
    """
    if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise ValueError(f"device={device!r} is unknown; choose cpu, cuda or cuda:<index>.")
    there = torch.cuda.device_count()
    if device != "cpu" and int(device[5:] or 0) >= there:
        raise ValueError(f"device={device!r}: torch sees {there or 'no'} CUDA device(s); choose one of them, or 'cpu'.")


class TorchRunner:
    """A PyTorch model, eager or compiled.

    Args:
        model: An encoder; it is put in eval mode, and left as it is where ``precision`` and ``device`` are its own.
        precision: ``float32``, ``bfloat16`` or ``float16``; by default the model's own.
        compiled: Whether `torch.compile` compiles it; on CUDA in the mode that captures CUDA graphs.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.

    Raises:
        ValueError: If the precision is unknown, or the device cannot be had.
    """

    threads: int | None = None

    def __init__(
        self, model: nn.Module, precision: str | None = None, compiled: bool = False, device: str = "cpu"
    ) -> None:
        if precision is not None and precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r} is unknown; choose from {', '.join(PRECISIONS)}.")
        check_device(device)
        own = next((p.dtype for p in model.parameters()), torch.float32)
        wanted = own if precision is None else PRECISIONS[precision]
        if wanted != own:
            model = copy.deepcopy(model).to(wanted)
        self.model = model.eval().to(device)
        self.config: Any = model.config
        self.device = device
        self.libraries: dict[str, str] = {}
        self._run: Callable[..., object] = model
        if compiled:
            mode = "reduce-overhead" if device.startswith("cuda") else None
            self._run = torch.compile(model, dynamic=False, mode=mode)
        how = "compiled" if compiled else "eager"
        self.backend = f"PyTorch {how}, {str(wanted).removeprefix('torch.')}"

    def prepare(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> Callable[[], object]:
        """See `Runner.prepare`."""
        inputs = {
            "input_ids": torch.from_numpy(input_ids).to(self.device),
            "attention_mask": torch.from_numpy(attention_mask).to(self.device),
        }

        @torch.inference_mode()
        def call() -> None:
            self._run(**inputs)

        return call
