"""Tokenises a corpus once, into what a collator pads."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..utils.choices import parse_weights

logger = logging.get_logger(__name__)

_FEATURES = Features({"input_ids": List(Value("int32")), "length": Value("int32")})


def parse_prompts(values: Sequence[str] | str | None, known: Mapping[str, str]) -> dict[str, float]:
    """Shares of texts by the prompt that stands before them, of ``"query:1 passage:1 none:2"``; empty for None.

    Args:
        values: Names of prompts with weights; ``none`` is a text without one.
        known: The teacher's prompts by name.

    Raises:
        ValueError: If a prompt is unknown, or a weight is not a positive number.
    """
    if values is None:
        return {}
    weights = parse_weights("prompts", values, [*known, "none"])
    total = sum(weights.values())
    return {known.get(name, ""): weight / total for name, weight in weights.items()}


def tokenize_corpus(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    prompts: Mapping[str, float] | None = None,
) -> Dataset:
    """Tokenises the column `text`.

    It runs in this process and leaves nothing in the cache of `datasets`; fast tokenizers use their own threads.
    Attention masks are not stored: a collator makes them when it pads. Sentences of which nothing but special tokens
    remains are dropped.

    Args:
        dataset: A dataset with a column `text`.
        tokenizer: The teacher's tokenizer, which is also the student's.
        max_length: Longest sequence in tokens, with special tokens; longer ones are truncated.
        prompts: Shares of texts by the prompt that is put before them; which text gets which depends on the text alone.

    Returns:
        A dataset with the columns `input_ids` (with special tokens) and `length` (their number), in order.

    Raises:
        ValueError: `max_length` leaves no room beside the special tokens or exceeds what the tokenizer's model takes,
            there is no column `text`, or nothing is left.
    """
    if "text" not in dataset.column_names:
        raise ValueError(f"The dataset has no column 'text'; its columns are {dataset.column_names}.")
    num_special_tokens = tokenizer.num_special_tokens_to_add(pair=False)
    if max_length <= num_special_tokens:
        raise ValueError(
            f"max_length={max_length} leaves no room beside {num_special_tokens} special tokens; use at least "
            f"{num_special_tokens + 1}."
        )
    if max_length > tokenizer.model_max_length:
        raise ValueError(
            f"max_length={max_length} exceeds the model_max_length={tokenizer.model_max_length} of the tokenizer."
        )

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoded = tokenizer(
            [_prompt_of(text, prompts) + text for text in batch["text"]],
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_special_tokens_mask=True,
        )
        input_ids = [
            ids
            for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
            if not all(special)
        ]
        return {"input_ids": input_ids, "length": [len(ids) for ids in input_ids]}

    tokenized = dataset.map(
        tokenize,
        batched=True,
        remove_columns=dataset.column_names,
        features=_FEATURES,
        keep_in_memory=True,
        load_from_cache_file=False,
        new_fingerprint=_fingerprint(dataset, tokenizer, max_length, prompts),
        desc="Tokenising",
    )
    if not len(tokenized):
        raise ValueError(f"None of {len(dataset)} sentences has a token that is not special.")
    if len(tokenized) < len(dataset):
        logger.info(f"Dropped {len(dataset) - len(tokenized)} sentences without a token that is not special.")
    return tokenized


def _prompt_of(text: str, prompts: Mapping[str, float] | None) -> str:
    """The prompt of a text: drawn by the shares, the same wherever the text stands; none of a text of nothing."""
    if not prompts or not text.strip():
        return ""
    place = zlib.crc32(text.encode()) / 2**32
    for prompt, share in prompts.items():
        place -= share
        if place < 0:
            return prompt
    return prompt  # shares add up to 1 but for rounding


def _fingerprint(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, prompts: Mapping[str, float] | None
) -> str:
    """Names the result by what it was made from.

    Left to itself, `datasets` would pickle and hash the tokenizer, which is slow, and differs once it was used.
    """
    vocabulary = hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
    parts = (dataset._fingerprint, type(tokenizer).__name__, vocabulary, str(max_length), repr(prompts or {}))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
