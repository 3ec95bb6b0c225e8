"""Random draws that depend on what they are for, and leave every global generator as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(*parts: object) -> int:
    """A seed that depends on all parts, each given by its ``repr``: the same in every process and on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def drawing(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Draw from ``seed`` inside the block, on the CPU and on ``device``; outside of it nothing has been drawn.

    ``torch.manual_seed`` would seed the generators of all devices, which ``torch.random.fork_rng`` restores only for
    those that it is told of. Here each generator that is seeded is restored, and no other is touched.

    Args:
        seed: See `seed_of`.
        device: The accelerator that draws, or the CPU.
    """
    device = torch.device(device)
    states = [(torch.default_generator, torch.default_generator.get_state())]
    if device.type not in ("cpu", "meta"):
        module = torch.get_device_module(device)
        if hasattr(module, "default_generators"):
            generator = module.default_generators[module.current_device() if device.index is None else device.index]
            states.append((generator, generator.get_state()))
    for generator, _ in states:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
