"""Runs that are started in several processes: how work is dealt out, and how they end."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping

import torch


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
