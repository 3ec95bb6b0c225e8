"""Real text for calibration and for the check, in batches as exported models read them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..data import DataArguments, load_corpus, split_corpus
from .quantization import Batch


def text_batches(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, batch_size: int = 8, max_length: int = 128
) -> list[Batch]:
    """Tokenise texts in batches, those of a length together.

    Args:
        texts: The texts.
        tokenizer: The student's.
        batch_size: Texts in a batch.
        max_length: Longest text in tokens; the rest is cut off.

    Returns:
        Batches with ``input_ids`` and ``attention_mask``, int64 ``(batch, sequence)``.
    """
    ordered = sorted(texts, key=len)
    batches = []
    for start in range(0, len(ordered), batch_size):
        encoded = tokenizer(
            ordered[start : start + batch_size],
            truncation=True,
            max_length=max_length,
            padding=True,
            return_tensors="np",
        )
        batches.append({name: encoded[name].astype(np.int64) for name in ("input_ids", "attention_mask")})
    return batches


def calibration_texts(
    args: DataArguments, calibration: int, checked: int, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Text to calibrate with, and other text of the same kind to check the result on.

    Args:
        args: Where the text comes from.
        calibration: Sentences to calibrate with.
        checked: Sentences to check on.
        seed: Of the choice.

    Raises:
        ValueError: If there are not so many sentences.
    """
    corpus = load_corpus(args)
    if len(corpus) < calibration + checked:
        raise ValueError(
            f"calibration_sentences={calibration} and check_sentences={checked}, but dataset={args.dataset} holds "
            f"{len(corpus)} sentences; lower them."
        )
    parts = split_corpus(corpus, heldout_sentences=checked, proxy_fraction=1.0, seed=seed)
    chosen = parts.train.shuffle(seed=seed).select(range(min(calibration, len(parts.train))))
    return list(chosen["text"]), list(parts.heldout["text"])
