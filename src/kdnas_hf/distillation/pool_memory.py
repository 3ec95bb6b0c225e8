"""How much memory a pool of students takes in training, and what to do when there is not enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

from ..students import KDNASConfig, KDNASModel
from .arguments import DistillationTrainingArguments
from .layer_mapping import resolve_layer_mapping
from .teacher import Teacher

Key = TypeVar("Key")

# a weight, its gradient, and the two moments that Adam keeps of it, all float32
_BYTES_PER_PARAMETER = 16


def training_bytes(
    config: KDNASConfig, teacher: Teacher, args: DistillationTrainingArguments, longest_text: int
) -> int:
    """Memory that one student takes in training, in bytes: an estimate.

    Weights, gradients and optimizer state of what trains, and the activations that the backward pass of one
    micro-batch needs where every text is the longest. Not the teacher, the table of word embeddings that students
    share, or what libraries take.

    Args:
        config: The student's shape.
        teacher: The teacher.
        args: Batch size, layer mapping and where students start.
        longest_text: Tokens of the longest text.
    """
    teacher_size = teacher.dimensions.hidden_size
    pairs = resolve_layer_mapping(args.layer_mapping, config.num_hidden_layers, teacher.dimensions.num_layers)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in KDNASModel(config).parameters())
    if args.student_init != "random":  # the table is the teacher's; only its projection trains
        parameters -= (config.vocab_size - teacher.model.get_input_embeddings().weight.shape[1]) * (
            config.word_embedding_size
        )
    projections = 1 if args.projection == "shared" else len(pairs)
    parameters += projections * config.hidden_size * teacher_size

    hidden = config.hidden_size
    values_per_token = 4 * hidden  # word, position and token type embeddings, and their norm
    for heads, ffn in zip(config.attention_heads_per_layer, config.intermediate_sizes_per_layer, strict=True):
        # attention: q, k, v, context, its map, residual and norm; scores, probabilities and dropout
        values_per_token += 8 * hidden + 3 * heads * longest_text
        # feed-forward block: before and after the activation, its map, residual and norm
        values_per_token += 4 * hidden + 2 * ffn
    values_per_token += len(pairs) * (hidden + 3 * teacher_size)  # projected states, targets and errors
    tokens = args.per_device_train_batch_size * longest_text
    return parameters * _BYTES_PER_PARAMETER + 4 * tokens * values_per_token


def split_by_memory(sizes: Mapping[Key, int], limit: float | None) -> list[list[Key]]:
    """Split into consecutive groups whose sizes add up to at most ``limit``; what is larger alone is a group alone."""
    groups: list[list[Key]] = []
    taken = 0
    for key, size in sizes.items():
        if groups and (limit is None or taken + size <= limit):
            groups[-1].append(key)
            taken += size
        else:
            groups.append([key])
            taken = size
    return groups


def halves(keys: Sequence[Key]) -> tuple[Sequence[Key], Sequence[Key]]:
    """The first and the second half of two or more."""
    middle = (len(keys) + 1) // 2
    return keys[:middle], keys[middle:]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on a device or on the host."""
    return isinstance(error, MemoryError) or (isinstance(error, Exception) and should_reduce_batch_size(error))
