"""Tokenises a stream of texts in batches, and counts the tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

_TEXTS_PER_BATCH = 1000


def encoded_batches(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], special_tokens: bool = True
) -> Iterator[tuple[list[str], list[list[int]]]]:
    """Tokenise texts as they come, whole: nothing is truncated, and nothing is kept in memory.

    Args:
        tokenizer: The tokenizer; its settings of padding and truncation are switched off, as by any call.
        texts: The texts.
        special_tokens: Whether the tokens that surround a text are added.

    Yields:
        Texts, and the tokens of each.

    Raises:
        ValueError: If there is no text, or something else than text.
    """
    if isinstance(texts, str):
        raise ValueError("texts is one string; give a list, a column of a dataset, or an open file's lines.")
    texts = iter(tqdm(texts, desc="Tokenising", unit="text", delay=2, leave=False))
    seen = 0
    while batch := list(itertools.islice(texts, _TEXTS_PER_BATCH)):
        for place, text in enumerate(batch, start=seen):
            if not isinstance(text, str):
                raise ValueError(f"texts[{place}] is a {type(text).__name__} and no string: {str(text)[:60]!r}.")
        seen += len(batch)
        encoded = tokenizer(
            batch,
            add_special_tokens=special_tokens,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # it would warn of texts that are longer than the model takes
        )
        yield batch, encoded["input_ids"]
    if not seen:
        raise ValueError("texts is empty: there is nothing to count tokens in.")


def flatten(token_ids: list[list[int]]) -> np.ndarray:
    """The tokens of all texts in a row, `(tokens,)`."""
    return np.fromiter(itertools.chain.from_iterable(token_ids), dtype=np.int64, count=sum(map(len, token_ids)))


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], vocab_size: int) -> np.ndarray:
    """Count how often each token occurs in texts, special tokens included.

    Args:
        tokenizer: The tokenizer.
        texts: The texts, an iterable that is read once.
        vocab_size: Rows of the embedding table that the tokens belong to.

    Returns:
        `(vocab_size,)` int64.

    Raises:
        ValueError: If there is no text, or a token without a row.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for _, token_ids in encoded_batches(tokenizer, texts):
        found = np.bincount(flatten(token_ids), minlength=vocab_size)
        if len(found) > vocab_size:
            raise ValueError(f"the tokenizer gave token {len(found) - 1}, but vocab_size={vocab_size}.")
        counts += found
    return counts
