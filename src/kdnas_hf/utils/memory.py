"""Errors that say that memory ran out."""

from __future__ import annotations

import torch
from accelerate.utils.memory import should_reduce_batch_size


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on a device or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, Exception) and should_reduce_batch_size(error)
    ):
        return True
    return isinstance(error, RuntimeError) and "_STATUS_ALLOC_FAILED" in str(error)  # cuBLAS, cuDNN
