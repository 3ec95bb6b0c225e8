"""Publish a student: checkpoint, tokenizer, card, plots, evidence, in one commit.

    python recipes/publish.py runs/quickstart/student --dry_run
    python recipes/publish.py runs/quickstart/student --native
    python recipes/publish.py runs/quickstart/student --repo_id me/kdnas-3x384 --private false
    python recipes/publish.py runs/quickstart --all_budgets --repo_id me/kdnas

Every field of `PublishArguments` is a flag and a key of a YAML file. A student whose shape allows it becomes a stock
XLM-RoBERTa checkpoint, which needs no code of ours. Without ``--repo_id`` nothing is sent: what would be is left beside
the student. Log in before (`hf auth login`, or set HF_TOKEN).
"""

from __future__ import annotations

import sys

from transformers.utils import logging

from kdnas_hf import parse_arguments, set_up_logging
from kdnas_hf.hub import Publication, PublishArguments, publish

logger = logging.get_logger("kdnas_hf.recipes.publish")


def main(argv: list[str] | None = None) -> None:
    """Publish what the command line asks for."""
    (args,) = parse_arguments((PublishArguments,), argv, positional="student")
    set_up_logging()

    def show(publication: Publication) -> None:
        if args.dry_run:
            sys.stdout.write(f"{publication.card}\n")
        outcome = f"published: {publication.url}"
        if publication.url is None:
            outcome = f"nothing was sent; it would go to {publication.repo_id}"
        left = "" if publication.folder is None else f"   left in {publication.folder}"
        logger.info(f"{publication.description}\n{outcome}{left}")

    publish(args, show=show)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, ImportError) as error:
        # bad input: the message says what to do, a traceback would hide it
        sys.exit(f"error: {error}")
