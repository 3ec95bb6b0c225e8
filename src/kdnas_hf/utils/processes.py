"""Runs that are started in several processes: how work is dealt out, and how they end."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import broadcast_object_list


def end_processes() -> None:
    """Leave the group of processes, if this one is in any; to be called last, whatever happened.

    The threads of gloo would else be waited for at exit, now and then for ever. After an error only gloo's group is
    left, by which the other processes learn of it: NCCL would wait for them, who are in the middle of something.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    if sys.exc_info()[0] is None or torch.distributed.get_backend() == "gloo":
        gc.collect()  # a model in DistributedDataParallel would else free the group last, and wait for it
        torch.distributed.destroy_process_group()


def balanced_shares(costs: Mapping[str, float], processes: int) -> list[list[str]]:
    """Deal out names by their costs, the dearest first, each to the process that has least; each share in order."""
    shares: list[list[str]] = [[] for _ in range(processes)]
    for name in sorted(costs, key=lambda name: -costs[name]):
        min(shares, key=lambda share: sum(costs[one] for one in share)).append(name)
    order = {name: place for place, name in enumerate(costs)}
    return [sorted(share, key=order.__getitem__) for share in shares]


class OnMain:
    """An object that only the main process has: its methods run there, and return the same in every process.

    Args:
        target: The object; None in processes other than the main one.
        world_size: Number of processes.
    """

    def __init__(self, target: Any | None, world_size: int) -> None:
        self.target = target
        self.world_size = world_size

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            value = None if self.target is None else getattr(self.target, name)(*args, **kwargs)
            return value if self.world_size == 1 else broadcast_object_list([value])[0]

        return call
