"""Digests of everything that the outputs of a model, or of a part of one, depend on."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn
from transformers import PreTrainedModel


def digest_of_model(model: PreTrainedModel) -> str:
    """A digest of a model's parameters, buffers and configuration."""
    config = {name: repr(value) for name, value in model.config.to_dict().items() if not name.startswith("_")}
    return digest_of_module(model, json.dumps(config, sort_keys=True))


def digest_of_module(module: nn.Module, settings: str) -> str:
    """A digest of a module's parameters and buffers, and of what else its outputs depend on."""
    digest = hashlib.blake2b(digest_size=16)
    # buffers too: some are not in the state of a model, and are added to what it reads
    for name, value in sorted({**dict(module.named_parameters()), **dict(module.named_buffers())}.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    digest.update(settings.encode())
    return digest.hexdigest()
