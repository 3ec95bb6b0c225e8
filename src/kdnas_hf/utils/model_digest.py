"""A digest of everything that a model's outputs depend on."""

from __future__ import annotations

import hashlib
import json

import torch
from transformers import PreTrainedModel


def digest_of_model(model: PreTrainedModel) -> str:
    """A digest of a model's parameters, buffers and configuration."""
    digest = hashlib.blake2b(digest_size=16)
    # buffers too: some are not in the state of a model, and are added to what it reads
    for name, value in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    config = {name: repr(value) for name, value in model.config.to_dict().items() if not name.startswith("_")}
    digest.update(json.dumps(config, sort_keys=True).encode())
    return digest.hexdigest()
