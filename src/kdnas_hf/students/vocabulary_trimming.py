"""Students with only the tokens that some text uses: the same outputs on it, from a far smaller embedding table."""

from __future__ import annotations

import copy
import difflib
import json
import random
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

from ..data.token_counts import encoded_batches, flatten
from .inheritance import fold_embeddings
from .modeling_kdnas import KDNASPreTrainedModel
from .tokenizer_trimming import TrimmableTokenizer

logger = logging.get_logger(__name__)

MODEL_TYPES = ("kdnas", "xlm-roberta", "roberta", "bert")
# texts on which the trimmed tokenizer is compared with the one before; of a larger corpus they are a random sample
CHECKED_TEXTS = 200_000
_TOKEN_ID_FIELDS = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id")
_SPECIAL_TOKENS = ("pad_token", "unk_token", "bos_token", "eos_token", "cls_token", "sep_token", "mask_token")
# all that a fast tokenizer is loaded from; other files would still hold the whole vocabulary
_KEPT_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class UnseenText:
    """How text is split that was not looked at when a vocabulary was trimmed.

    Attributes:
        texts: Number of texts.
        same: How many of them are split as before.
        tokens_before: Tokens before, without special ones.
        tokens: Tokens now.
        unknown_before: How many of those before were unknown.
        unknown: How many of those now are.
    """

    texts: int
    same: int
    tokens_before: int
    tokens: int
    unknown_before: int
    unknown: int

    @property
    def unknown_share_before(self) -> float:
        """Share of unknown tokens before."""
        return self.unknown_before / max(self.tokens_before, 1)

    @property
    def unknown_share(self) -> float:
        """Share of unknown tokens now."""
        return self.unknown / max(self.tokens, 1)

    def __str__(self) -> str:
        return (
            f"{self.same / self.texts:.1%} of {self.texts:,} texts are split as before; "
            f"{self.tokens / max(self.tokens_before, 1):.3f} times as many tokens; unknown "
            f"{self.unknown_share_before:.3%} before, {self.unknown_share:.3%} now"
        )


@dataclass(frozen=True, eq=False)
class TrimmedVocabulary:
    """A student with fewer tokens, and its tokenizer.

    Attributes:
        student: The smaller student, of the same class; nothing is shared with the one before.
        tokenizer: Its tokenizer, as it comes back from a checkpoint.
        kept: `(vocab_size,)`, the numbers that its tokens had before, ascending.
        vocab_size_before: Rows of the table before.
        bytes_before: Of all parameters before.
        bytes: Of all parameters now.
        unseen: How held-out text is split, where there was some.
    """

    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kept: torch.Tensor
    vocab_size_before: int
    bytes_before: int
    bytes: int
    unseen: UnseenText | None = None

    @property
    def vocab_size(self) -> int:
        """Rows of the table now."""
        return len(self.kept)


def trim_vocabulary(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    keep: Sequence[str] = (),
    heldout: Iterable[str] | None = None,
) -> TrimmedVocabulary:
    """Leave out the tokens that a corpus does not use.

    Tokens keep their order, so special tokens at the front keep their numbers. The corpus is split into the same tokens
    as before, and hidden states on it are the same to the last bit. Other text is split into smaller pieces where a
    token of it is gone, and is unknown only where it has a character that nothing in the corpus has.

    Args:
        student: A student with or without a head, or a stock BERT or XLM-RoBERTa; it stays as it is.
        tokenizer: Its fast tokenizer, of the kind Unigram, BPE or WordPiece; it stays as it is.
        texts: The corpus. It is read once and not kept, but for a sample on which the result is checked.
        keep: Tokens that stay in any case, beside the special and added ones.
        heldout: Text to say how other text is split.

    Raises:
        ValueError: If student and tokenizer do not belong together, tokens of this tokenizer cannot be left out, `keep`
            has something that is no token, or there is no text. Also if any text that is checked is not split as
            before, which would be an error of this function.
    """
    _check(student, tokenizer)
    trimmable = TrimmableTokenizer(tokenizer.backend_tokenizer)
    used = _special_ids(student, tokenizer, trimmable) | _named_tokens(tokenizer, keep)
    occurring, unknown, sample = _read_corpus(trimmable, tokenizer, texts, student.config.vocab_size)
    kept = trimmable.close(used | occurring, unknown)
    smaller = _load_trimmed(student, tokenizer, trimmable, kept, sample)
    trimmed = _trim_student(student, kept)
    logger.info(f"{len(kept):,} of {student.config.vocab_size:,} tokens are kept.")
    return TrimmedVocabulary(
        student=trimmed,
        tokenizer=smaller,
        kept=torch.tensor(kept),
        vocab_size_before=student.config.vocab_size,
        bytes_before=_bytes(student),
        bytes=_bytes(trimmed),
        unseen=None if heldout is None else measure_unseen(tokenizer, smaller, kept, heldout),
    )


# ---- which tokens stay ----


def check_trimmable(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that tokens of a tokenizer can be left out.

    Raises:
        ValueError: If they cannot.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is no fast tokenizer, whose tokens could be left out; load it by "
            "AutoTokenizer.from_pretrained(…, use_fast=True)."
        )
    TrimmableTokenizer(tokenizer.backend_tokenizer)


def _check(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    config = student.config
    if config.model_type not in MODEL_TYPES:
        raise ValueError(f"the student is a {config.model_type!r}; choose one of {', '.join(MODEL_TYPES)}.")
    check_trimmable(tokenizer)
    numbers = tokenizer.get_vocab().values()
    if max(numbers) >= config.vocab_size:
        raise ValueError(
            f"the tokenizer has the token {max(numbers)}, but the student's vocab_size={config.vocab_size}: they do "
            "not belong together."
        )
    if tokenizer.pad_token_id != config.pad_token_id:
        raise ValueError(
            f"the tokenizer's pad_token_id={tokenizer.pad_token_id} is not the student's {config.pad_token_id}: they "
            "do not belong together."
        )


def _special_ids(
    student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, trimmable: TrimmableTokenizer
) -> set[int]:
    """Special and added tokens, and what the configuration names."""
    named = {getattr(student.config, name, None) for name in _TOKEN_ID_FIELDS}
    special = {*tokenizer.all_special_ids, *trimmable.added, *(one for one in named if isinstance(one, int))}
    if student.config.model_type in ("xlm-roberta", "roberta"):  # positions count from this number
        special |= set(range(student.config.pad_token_id))
    return special & {*tokenizer.get_vocab().values()}


def _named_tokens(tokenizer: PreTrainedTokenizerBase, keep: Sequence[str]) -> set[int]:
    if isinstance(keep, str):
        raise ValueError(f"keep={keep!r} is one string; give a list of tokens.")
    vocabulary = tokenizer.get_vocab()
    for token in keep:
        if token not in vocabulary:
            pieces = tokenizer.tokenize(token)
            near = difflib.get_close_matches(token, pieces, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"the tokenizer splits it into {pieces}."
            raise ValueError(f"keep names {token!r}, which is no token; {hint}")
    return {vocabulary[token] for token in keep}


def _read_corpus(
    trimmable: TrimmableTokenizer, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], vocab_size: int
) -> tuple[set[int], set[str], list[str]]:
    """Tokens that occur, what came out as unknown, and a sample of the texts."""
    occurring = np.zeros(vocab_size, dtype=bool)
    unknown: set[str] = set()
    sample: list[str] = []
    draw, seen = random.Random(0), 0
    for batch, token_ids in encoded_batches(tokenizer, texts, special_tokens=False):
        occurring[flatten(token_ids)] = True
        if trimmable.kind == "WordPiece":
            affected = [text for text, ids in zip(batch, token_ids, strict=True) if trimmable.unknown_id in ids]
            unknown |= trimmable.text_that_is_unknown(affected)
        for text in batch:  # reservoir sampling (Vitter 1985)
            seen += 1
            if len(sample) < CHECKED_TEXTS:
                sample.append(text)
            elif (place := draw.randrange(seen)) < CHECKED_TEXTS:
                sample[place] = text
    return {int(token) for token in occurring.nonzero()[0]}, unknown, sample


# ---- the tokenizer ----


def _load_trimmed(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    trimmable: TrimmableTokenizer,
    kept: list[int],
    sample: list[str],
) -> PreTrainedTokenizerBase:
    """The trimmed tokenizer as a checkpoint gives it back, checked on a sample of the corpus.

    transformers 5 builds some tokenizers anew from their vocabulary when it loads them, others than were saved. One
    that then splits text differently is loaded as a `PreTrainedTokenizerFast`, which takes the JSON as it is.
    """
    expected = [_split(tokenizer, batch) for batch in _batches(sample)]
    reason = ""
    for loader in (AutoTokenizer, PreTrainedTokenizerFast):
        with tempfile.TemporaryDirectory() as folder:
            first, second = Path(folder, "trimmed"), Path(folder, "saved again")
            student.config.save_pretrained(first)  # transformers 5 looks for the model's type
            _write_tokenizer(first, tokenizer, trimmable, kept)
            try:
                loaded = loader.from_pretrained(first)
                student.config.save_pretrained(second)
                loaded.save_pretrained(second)
                again = AutoTokenizer.from_pretrained(second)
            except Exception as error:  # of many kinds: a class that cannot do without what was left out
                reason = f"{loader.__name__} cannot load it: {error}"
                continue
        reason = _difference(tokenizer, loaded, kept, sample, expected)
        reason = reason or _difference(tokenizer, again, kept, sample, expected)
        if not reason:
            loaded.name_or_path = tokenizer.name_or_path  # the folder is gone
            return loaded
        logger.info(f"{loader.__name__} does not give back the trimmed tokenizer: {reason}")
    raise ValueError(f"the trimmed tokenizer would not do the same as before: {reason}")


def _write_tokenizer(
    folder: Path, tokenizer: PreTrainedTokenizerBase, trimmable: TrimmableTokenizer, kept: list[int]
) -> None:
    """A tokenizer's files, of which only the vocabulary is another."""
    before = set(folder.iterdir())
    tokenizer.save_pretrained(folder)
    for path in set(folder.iterdir()) - before:
        if path.is_file() and path.name not in _KEPT_TOKENIZER_FILES:
            path.unlink()
    (folder / "tokenizer.json").write_text(trimmable.trim(kept), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    new_ids = {str(old): str(new) for new, old in enumerate(kept)}
    if "added_tokens_decoder" in fields:  # of transformers 4
        added = fields["added_tokens_decoder"]
        fields["added_tokens_decoder"] = {new_ids[old]: token for old, token in added.items()}
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _split(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[np.ndarray]:
    """Numbers of the tokens in a row, and how many belong to each text, special tokens included."""
    ((_, token_ids),) = encoded_batches(tokenizer, texts)
    return [flatten(token_ids), np.array([len(ids) for ids in token_ids])]


def _batches(texts: list[str], size: int = 1000) -> list[list[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def _difference(
    before: PreTrainedTokenizerBase,
    now: PreTrainedTokenizerBase,
    kept: list[int],
    sample: list[str],
    expected: list[list[np.ndarray]],
) -> str:
    """In what two tokenizers differ but for the renumbering, in a sentence; nothing if they agree."""
    new_ids = {old: new for new, old in enumerate(kept)}
    if now.get_vocab() != {token: new_ids[old] for token, old in before.get_vocab().items() if old in new_ids}:
        return "its tokens have other numbers."
    for name in _SPECIAL_TOKENS:
        one, other = (str(which.special_tokens_map.get(name)) for which in (now, before))
        if one != other:
            return f"its {name} is {one} and not {other}."
    renumbered = np.array(kept)
    for batch, (token_ids, lengths) in zip(_batches(sample), expected, strict=True):
        found, found_lengths = _split(now, batch)
        if not np.array_equal(found_lengths, lengths) or not np.array_equal(renumbered[found], token_ids):
            return _first_difference(before, now, batch)
    pair: Any = [(sample[0], sample[-1])]
    if _tokens(now, pair) != _tokens(before, pair):
        return "it joins two texts in another way."
    return ""


def _first_difference(before: PreTrainedTokenizerBase, now: PreTrainedTokenizerBase, texts: list[str]) -> str:
    for text in texts:
        one, other = _tokens(now, [text]), _tokens(before, [text])
        if one != other:
            return f"{text[:60]!r} gives {one[:12]} and not {other[:12]}."
    return "its tokens have other numbers."


def _tokens(tokenizer: Any, texts: list[Any]) -> list[str]:
    """The tokens of one text or pair by name, special ones included."""
    return tokenizer.convert_ids_to_tokens(tokenizer(texts, verbose=False)["input_ids"][0])


def measure_unseen(
    before: PreTrainedTokenizerBase, now: PreTrainedTokenizerBase, kept: Sequence[int], texts: Iterable[str]
) -> UnseenText:
    """Say how a trimmed tokenizer splits other text.

    Args:
        before: The tokenizer before.
        now: The trimmed one.
        kept: The numbers that its tokens had before.
        texts: The text.
    """
    totals = np.zeros(6, dtype=np.int64)
    renumbered = np.array(kept)
    for batch, old in encoded_batches(before, texts, special_tokens=False):
        ((_, new),) = encoded_batches(now, batch, special_tokens=False)
        same = sum(renumbered[ids].tolist() == list(ids_before) for ids, ids_before in zip(new, old, strict=True))
        flat_old, flat_new = flatten(old), flatten(new)
        unknown = [(flat == one.unk_token_id).sum() for flat, one in ((flat_old, before), (flat_new, now))]
        totals += [len(batch), same, len(flat_old), len(flat_new), *unknown]
    return UnseenText(*totals.tolist())


# ---- the student ----


def _trim_student(student: PreTrainedModel, kept: list[int]) -> PreTrainedModel:
    """A student of the same class with the rows `kept` of every table that has one row a token."""
    if not isinstance(student.get_input_embeddings(), nn.Embedding):  # inherited, or training in part
        student = copy.deepcopy(student)
        assert isinstance(student, KDNASPreTrainedModel)
        fold_embeddings(student)
    config = _trim_config(student.config, kept)
    keywords: dict[str, Any] = {}
    if getattr(student, "pooler", True) is None:
        keywords["add_pooling_layer"] = False
    with torch.random.fork_rng(devices=[]):  # its initial weights are drawn in vain
        kind: Any = type(student)
        trimmed = kind(config, **keywords)
    rows = torch.tensor(kept)
    wanted = trimmed.state_dict()
    state = {
        name: value if value.shape == wanted[name].shape else value.detach()[rows.to(value.device)]
        for name, value in student.state_dict().items()
    }
    trimmed = trimmed.to(dtype=student.dtype, device=student.device)
    trimmed.load_state_dict(state)
    trimmed.tie_weights()
    return trimmed.train(student.training)


def _trim_config(config: Any, kept: list[int]) -> Any:
    new_ids = {old: new for new, old in enumerate(kept)}
    trimmed = copy.deepcopy(config)
    trimmed._attn_implementation = config._attn_implementation
    trimmed.vocab_size = len(kept)
    for name in _TOKEN_ID_FIELDS:
        if getattr(config, name, None) is not None:
            setattr(trimmed, name, new_ids.get(getattr(config, name)))
    if config.model_type == "kdnas" and trimmed.pad_token_id != config.pad_token_id:
        trimmed.position_padding_idx = config.first_position - 1  # positions count from where they did
    return trimmed


def _bytes(model: PreTrainedModel) -> int:
    """Of all parameters, each counted once; inherited word embeddings as the table that a checkpoint has of them."""
    table: Any = model.get_input_embeddings()
    folded = not isinstance(table, nn.Embedding)
    own = {id(parameter) for parameter in table.parameters()} if folded else set()
    rest = sum(one.numel() * one.element_size() for one in model.parameters() if id(one) not in own)
    return rest + (table.num_embeddings * table.embedding_dim * 4 if folded else 0)


__all__ = ["TrimmedVocabulary", "UnseenText", "measure_unseen", "trim_vocabulary"]
