"""What tells one cache of the teacher's states from another."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from .arguments import CACHE_PRECISIONS, check_choice
from .teacher import Teacher
from .token_chunks import token_chunks

FORMAT_VERSION = 1
# 25 MB of a feature in bfloat16 at a hidden size of 768: what is held in memory, and lost by an interruption
TOKENS_PER_SHARD = 2**14

# fields of a configuration that say where a model is from or how it computes, not what it computes
VOLATILE_CONFIG_FIELDS = frozenset(
    {
        "architectures",
        "attn_implementation",
        "dtype",
        "id2label",
        "label2id",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


def cache_key(
    teacher: Teacher, dataset: Any, precision: str = "bfloat16", tokens_per_shard: int = TOKENS_PER_SHARD
) -> str:
    """Name of the cache that holds this teacher's features of these texts.

    A SHA-256 over the teacher's weights, the fields of its configuration that matter, what it computes in, its
    tokenizer, all token ids, the precision and the size of the shards. What only changes rounding is left out: the
    device, the attention kernel and the batch size.

    Raises:
        ValueError: If the data set cannot be read by index, or is empty.
    """
    return key_of(key_fields(teacher, dataset, precision, tokens_per_shard)[0])


def key_fields(
    teacher: Teacher, dataset: Any, precision: str, tokens_per_shard: int
) -> tuple[dict[str, str | int], torch.Tensor]:
    """What the key is a hash of, and the length of each text ``(texts,)``."""
    check_choice("precision", precision, CACHE_PRECISIONS)
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ValueError(
            f"dataset is a {type(dataset).__name__}, which has no length or no index; teacher states of a stream "
            "cannot be cached: load it as a whole, or pass --cache_teacher_states false."
        )
    texts, lengths = _digest_of_texts(dataset)
    if not len(lengths):
        raise ValueError("dataset has no texts; there are no teacher states to cache.")
    keyed_by: dict[str, str | int] = {
        "format": FORMAT_VERSION,
        "weights": _digest_of_weights(teacher.model),
        "config": _digest_of_config(teacher.model.config),
        "model_class": type(teacher.model).__name__,
        "dtype": str(teacher.model.dtype),
        "tokenizer": _digest_of_tokenizer(teacher.tokenizer),
        "texts": texts,
        "precision": precision,
        "tokens_per_shard": tokens_per_shard,
    }
    return keyed_by, lengths


def key_of(keyed_by: Mapping[str, str | int]) -> str:
    """The key of the fields that `key_fields` gave."""
    return hashlib.sha256(json.dumps(keyed_by, sort_keys=True).encode()).hexdigest()


def checked_key(key: str) -> str:
    """The key itself, which is the name of a directory.

    Raises:
        ValueError: If it is none.
    """
    if not re.fullmatch("[0-9a-f]{64}", key):
        raise ValueError(f"key={key!r} is no key of a cache, which has 64 hexadecimal digits; see cache_key.")
    return key


def _digest_of_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        # as bytes: numpy knows no bfloat16
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest_of_config(config: PretrainedConfig) -> str:
    def without_volatile(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: without_volatile(field)
            for name, field in value.items()
            if not str(name).startswith("_") and name not in VOLATILE_CONFIG_FIELDS
        }

    fields = without_volatile(config.to_dict())
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()


def _digest_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    # what the last call happened to set; these fields come first, and to parse the vocabulary as well takes seconds
    for field in ("truncation", "padding"):
        before, found, after = state.partition(f'"{field}":')
        if found and backend is not None:
            _, end = json.JSONDecoder().raw_decode(after)
            state = before + after[end:]
    # how the teacher's batches are padded: on the left, some encoders see other positions
    return hashlib.sha256(f"{tokenizer.pad_token_id} {tokenizer.padding_side} {state}".encode()).hexdigest()


def _digest_of_texts(dataset: Any) -> tuple[str, torch.Tensor]:
    """Hash of all token ids, and the length of each text ``(texts,)``.

    The lengths are counted, whatever a column ``length`` says: every id is read here anyway.
    """
    digest = hashlib.sha256()
    counted = [np.zeros(0, dtype=np.int64)]
    for ids, lengths in token_chunks(dataset, 0, len(dataset)):
        digest.update(np.ascontiguousarray(ids).data)
        counted.append(lengths)
    all_lengths = np.concatenate(counted)
    digest.update(all_lengths.data)
    return digest.hexdigest(), torch.from_numpy(all_lengths)
