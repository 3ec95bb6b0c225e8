"""Makes a smaller student of a saved one, and says beside it what that changed."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from .. import students
from ..data import DataArguments, count_tokens, load_corpus, split_corpus
from ..export import load_with_head
from ..search import SearchResult
from ..students import SentenceEncoder
from ..students.output_agreement import compare_outputs
from ..students.sentence_dimension import encode_with_prompts, neighbours_kept, shorten_vectors
from ..students.vocabulary_trimming import measure_unseen
from ..utils.atomic_files import replace_directory
from ..utils.package_versions import package_versions
from ..utils.sentence_head import SentenceHead
from ..utils.tokenizers import load_tokenizer
from .arguments import CompressionArguments
from .evidence import CompressionEvidence, names_of, record_compression
from .model_card import write_model_card
from .public_text import public_command


def compress_student(
    args: CompressionArguments, data_args: DataArguments, command: Sequence[str] = ()
) -> CompressionEvidence:
    """Trim a saved student's vocabulary, factorise its word embeddings, shorten its sentence vectors, and save it.

    A part of the text is held out: it decides nothing, and on it the smaller student is measured.

    Args:
        args: What to do.
        data_args: The text; `args.trim_to` takes the place of its `dataset`.
        command: The command that runs, for the card.

    Returns:
        What was changed and measured, as it is kept beside the student, with its card.

    Raises:
        FileNotFoundError: If there is no student.
        ValueError: If the directory is not empty, or the student cannot be compressed so.
    """
    source = Path(args.student)
    target = Path(args.output_dir or f"{str(source).rstrip('/')}-compressed")
    if not (source / "config.json").is_file():
        raise FileNotFoundError(f"student={args.student!r} holds no config.json: it is no student's directory.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"output_dir={str(target)!r} is not empty; choose another.")
    if args.trim_to is not None:
        data_args = dataclasses.replace(data_args, dataset=args.trim_to)
    head = SentenceHead.load(source, field="student")
    dimension = None if head is None else head.dimension(AutoConfig.from_pretrained(source).hidden_size)
    if args.embedding_dimension is not None and not 1 <= args.embedding_dimension <= (dimension or 0):
        made = f"makes vectors of {dimension}" if head else "makes no sentence vectors (it has no modules.json)"
        raise ValueError(
            f"embedding_dimension={args.embedding_dimension}: student={args.student!r} {made}; choose fewer, or leave "
            "it out."
        )
    student = load_with_head(source, dtype="auto")
    tokenizer = load_tokenizer(source, field="student", require_fast=False)
    splits = split_corpus(load_corpus(data_args), data_args.heldout_sentences, data_args.proxy_fraction, seed=args.seed)
    texts, heldout = splits.train["text"], list(splits.heldout["text"])

    smaller, its_tokenizer, kept_variance = student, tokenizer, 1.0
    kept = list(range(student.config.vocab_size))
    if args.trim_to is not None:
        trimmed = students.trim_vocabulary(student, tokenizer, texts, args.keep_tokens)
        smaller, its_tokenizer, kept = trimmed.student, trimmed.tokenizer, trimmed.kept.tolist()
    if args.embedding_size is not None:
        counts = count_tokens(its_tokenizer, texts, smaller.config.vocab_size)
        factorised = students.factorise_embeddings(smaller, args.embedding_size, counts)
        smaller, kept_variance = factorised.student, factorised.kept_variance
    unseen = measure_unseen(tokenizer, its_tokenizer, kept, heldout)
    agreement = compare_outputs((student, tokenizer), (smaller, its_tokenizer), heldout, data_args.max_length)

    neighbours: dict[str, float] = {}
    if head is not None and args.embedding_dimension is not None:
        before, now = (
            SentenceEncoder(cast(PreTrainedModel, model.base_model), its, head)
            for model, its in ((student, tokenizer), (smaller, its_tokenizer))
        )
        head = now.head = shorten_vectors(now, texts, args.embedding_dimension)
        neighbours = _neighbours_kept(before, now, heldout)

    _save(smaller, its_tokenizer, target)
    if head is not None:
        head.save(target)
    evidence = CompressionEvidence(
        texts=names_of(data_args),
        vocab_size_before=student.config.vocab_size,
        vocab_size=smaller.config.vocab_size,
        embedding_size_before=_embedding_size(student.config),
        embedding_size=_embedding_size(smaller.config),
        bytes_before=_weight_bytes(source),
        bytes=_weight_bytes(target),
        kept_variance=kept_variance,
        dimension_before=dimension,
        dimension=args.embedding_dimension or dimension,
        neighbours_kept=neighbours,
        heldout_sentences=len(heldout),
        split_alike=unseen.same / unseen.texts,
        unknown_before=unseen.unknown_share_before,
        unknown=unseen.unknown_share,
        cosine=agreement.cosine,
        lowest_cosine=agreement.lowest_cosine,
        r2=agreement.r2,
        command=public_command(command),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=package_versions("torch", "transformers", "tokenizers"),
    )
    record_compression(target, source, evidence)
    write_model_card(target)
    return evidence


def trim_students(result: SearchResult, data_args: DataArguments, seed: int, command: Sequence[str] = ()) -> list[Path]:
    """Beside each student of a search, one with only the tokens of the text that it was distilled on.

    What is there already stays.

    Args:
        result: The search.
        data_args: Its text.
        seed: Its seed, so that the same sentences are held out.
        command: The command that runs, for the cards.

    Returns:
        The directories of the smaller students.
    """
    targets = []
    for student in result.students:
        targets.append(target := result.folder / f"{student.path}-trimmed")
        if target.exists():
            continue
        args = CompressionArguments(student=str(result.folder / student.path), trim_to=data_args.dataset, seed=seed)

        def compress(made: Path, args: CompressionArguments = args) -> None:
            compress_student(dataclasses.replace(args, output_dir=str(made)), data_args, command)

        replace_directory(target, compress)
    return targets


def _save(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Path) -> None:
    """Save a student, and its tokenizer in the words that transformers 4 and 5 know."""
    student.save_pretrained(target)
    config: Any = student.config
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        max_tokens = getattr(config, "max_tokens", None) or min(
            tokenizer.model_max_length, config.max_position_embeddings
        )
        students.copy_tokenizer(Path(folder), target, max_tokens)


def _neighbours_kept(before: SentenceEncoder, now: SentenceEncoder, texts: Sequence[str]) -> dict[str, float]:
    """The share of `neighbours_kept` with the shorter vectors, and with a half, a quarter and an eighth of them."""
    old, new = encode_with_prompts(before, texts), encode_with_prompts(now, texts)
    sizes = dict.fromkeys(now.dimension // part for part in (1, 2, 4, 8) if now.dimension >= part)
    return {str(size): neighbours_kept(old, new[:, :size]) for size in sizes}


def _embedding_size(config: Any) -> int:
    return getattr(config, "embedding_size", None) or config.hidden_size


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("model*.safetensors"))


__all__ = ["compress_student", "trim_students"]
