"""Make a trained student smaller: fewer tokens, shorter word embeddings, shorter sentence vectors.

    python recipes/compress.py runs/quickstart/student --trim_to embedded
    python recipes/compress.py runs/mine/student --trim_to 'texts/*.txt' --embedding_size 192 --output_dir runs/small
    python recipes/compress.py runs/quickstart/student --embedding_size 192
    python recipes/compress.py runs/quickstart/student --embedding_dimension 128

Every field of `CompressionArguments` and `DataArguments` is a flag and a key of a YAML file. The smaller student is
left in ``output_dir`` with its tokenizer, a card, and what changed in ``evidence/compression.json``, measured on
held-out sentences. What was measured of the student before (R², latency, scores) does not hold for it and is left
behind.
"""

from __future__ import annotations

import sys

from transformers.utils import logging

from kdnas_hf import DataArguments, parse_arguments, set_up_logging
from kdnas_hf.hub import CompressionArguments, CompressionEvidence, compress_student
from kdnas_hf.utils.markdown_table import markdown_table

logger = logging.get_logger("kdnas_hf.recipes.compress")


def main(argv: list[str] | None = None) -> None:
    """Compress what the command line asks for."""
    given = list(sys.argv[1:] if argv is None else argv)
    args, data_args = parse_arguments((CompressionArguments, DataArguments), given, positional="student")
    set_up_logging()
    made = compress_student(args, data_args, command=["python", "recipes/compress.py", *given])
    logger.info(describe(made))


def describe(made: CompressionEvidence) -> str:
    """What was changed and measured, for people."""
    rows = [
        ["tokens", f"{made.vocab_size_before:,}", f"{made.vocab_size:,}"],
        ["size of a word embedding", str(made.embedding_size_before), str(made.embedding_size)],
        ["dimensions of a sentence vector", str(made.dimension_before or "none"), str(made.dimension or "none")],
        ["weights, MB", f"{made.bytes_before / 1e6:.1f}", f"{made.bytes / 1e6:.1f}"],
        ["unknown tokens, held-out text", f"{made.unknown_before:.3%}", f"{made.unknown:.3%}"],
    ]
    return (
        f"{markdown_table(['', 'before', 'now'], rows)}\n"
        f"on {made.heldout_sentences:,} held-out sentences: {made.split_alike:.1%} are split as before; sentence "
        f"vectors have a mean cosine of {made.cosine:.4f} to those before (lowest {made.lowest_cosine:.3f}), "
        f"R² {made.r2:.3f}; {made.kept_variance:.1%} of the variance of the word embeddings is kept"
    ) + "".join(
        f"\ncut off after {size} dimensions, {share:.1%} have the nearest neighbour that they had"
        for size, share in made.neighbours_kept.items()
    )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, ImportError) as error:
        # bad input: the message says what to do, a traceback would hide it
        sys.exit(f"error: {error}")
