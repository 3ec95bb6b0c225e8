"""Score a student on downstream tasks, next to its teacher and to itself without distillation.

    python recipes/evaluate.py recipes/configs/intents.yaml
    python recipes/evaluate.py --student runs/mine/student --teacher FacebookAI/xlm-roberta-base --tasks xnli wikiann

Every field of `EvaluationArguments` is a flag and a key of the YAML file; flags win. Scores are left in ``output_dir``:
``results.json``, ``results.md``, ``scores.csv``, ``scores.png``. Started again, it does only what is missing.
"""

from __future__ import annotations

import sys

from transformers.utils import logging

from kdnas_hf import parse_arguments, set_up_logging, share_cpu_threads, write_scores_into_card
from kdnas_hf.evaluation import Comparison, EvaluationArguments

logger = logging.get_logger("kdnas_hf.recipes.evaluate")


def main(argv: list[str] | None = None) -> None:
    """Evaluate what the command line asks for."""
    (args,) = parse_arguments((EvaluationArguments,), argv)
    set_up_logging()
    share_cpu_threads(args.cpu_threads)
    comparison = Comparison(args)
    results = comparison.run()
    if args.update_card:
        write_scores_into_card(results, args.student)
    kept = ", ".join(f"{name} {value:.1f} %" for name, value in results.retention.items())
    logger.info(f"kept of the teacher's score: {kept}\nresults: {comparison.folder / 'results.md'}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, ImportError) as error:
        # bad input: the message says what to do, a traceback would hide it
        sys.exit(f"error: {error}")
