"""Loads the tokenizers of encoders, all of them padded on the right."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

_REMEDY = "save a fast tokenizer beside the model with AutoTokenizer.from_pretrained(…).save_pretrained(…)."


def load_tokenizer(
    name_or_path: str | Path, revision: str | None = None, field: str = "teacher", require_fast: bool = True
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of an encoder; it pads on the right, whatever it was saved with.

    Args:
        name_or_path: Hub id or local directory.
        revision: Branch, tag or commit on the Hub.
        field: What errors call ``name_or_path``: the argument that named it.
        require_fast: Refuse a tokenizer that cannot tell which token is of which word.

    Raises:
        ValueError: If there is no tokenizer, or only a slow one where a fast one is required.
    """
    named = f"{field}={str(name_or_path)!r}"
    try:
        # Encoders like BERT count positions from the left edge, padding included, and heads read the first token: with
        # padding on the left, what a text gives would depend on the longest text of its batch. As an argument it is
        # also what a copy of the tokenizer, saved beside a student, says.
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, revision=revision, padding_side="right")
    # without its files each line of transformers fails in its own way; damaged ones are a bare Exception of tokenizers
    except Exception as error:
        kind = "fast tokenizer" if require_fast else "tokenizer"
        said = " ".join(str(error).split())
        raise ValueError(f"{named} has no {kind} that loads ({said}); {_REMEDY}") from error
    # where no file is found, transformers 5 makes an empty tokenizer of the model's kind: special tokens and a space
    if len(tokenizer) <= len(tokenizer.all_special_tokens) + 1:
        raise ValueError(f"{named} has no tokenizer; {_REMEDY}")
    if require_fast and not tokenizer.is_fast:
        raise ValueError(f"{named} has no fast tokenizer; {_REMEDY}")
    return tokenizer
