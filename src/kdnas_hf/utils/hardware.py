"""What this machine computes fast."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def bf16_pays_off(use_cpu: bool = False) -> bool:
    """Whether bf16 matrices are multiplied natively here (AVX-512-BF16 or AMX on a CPU, Ampere or later on a GPU)."""
    if torch.cuda.is_available() and not use_cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # the instructions have no public query in torch; a version that renames these falls back to float32
    avx512_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    amx_tile = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(avx512_bf16() or amx_tile())


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_cpu_threads(threads: int | None = None) -> int:
    """Set torch's CPU threads, and return their number.

    Without this, ``accelerate launch`` leaves every process a single thread.

    Args:
        threads: How many; by default the cores divided by the processes on this machine.
    """
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = threads or max(usable_cores() // local_processes, 1)
    torch.set_num_threads(threads)
    return threads


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let PyTorch use so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
