"""The end of a run that was started in several processes."""

from __future__ import annotations

import gc
import sys

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


__all__ = ["end_processes"]
