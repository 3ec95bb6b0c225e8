"""Score a student on downstream tasks, next to its teacher and to itself without distillation.

    python recipes/evaluate.py recipes/configs/intents.yaml
    python recipes/evaluate.py --student runs/mine/student --teacher FacebookAI/xlm-roberta-base --tasks xnli wikiann
    python recipes/evaluate.py --student runs/embedder/student --tasks stsb tatoeba

Every field of `EvaluationArguments` and `EmbeddingArguments` is a flag and a key of the YAML file; flags win. Scores
are left in ``output_dir``: ``results.json``, ``results.md``, ``scores.csv``, ``scores.png`` of tasks that models are
fine-tuned on, ``embeddings.json``, ``embeddings.md`` of those that sentence vectors are scored by as they are. Started
again, it does only what is missing.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from transformers.utils import logging

from kdnas_hf import parse_arguments, set_up_logging, share_cpu_threads, write_scores_into_card
from kdnas_hf.evaluation import Comparison, EvaluationArguments, embeddings

logger = logging.get_logger("kdnas_hf.recipes.evaluate")


def main(argv: list[str] | None = None) -> None:
    """Evaluate what the command line asks for."""
    args, embedding_args = parse_arguments((EvaluationArguments, embeddings.EmbeddingArguments), argv)
    set_up_logging()
    share_cpu_threads(args.cpu_threads)
    # what is wrong with the data of either family is said before the other starts
    scored = [
        embeddings.load_embedding_data(name, args.data_dir, args.languages, args.max_test_examples)
        for name in args.embedding_tasks
    ]
    comparison = Comparison(replace(args, tasks=args.finetuning_tasks)) if args.finetuning_tasks else None
    if scored:
        score_vectors(args, embedding_args, scored)
    if comparison is not None:
        results = comparison.run()
        if args.update_card:
            write_scores_into_card(results, args.student)
        kept = ", ".join(f"{name} {value:.1f} %" for name, value in results.retention.items())
        logger.info(f"kept of the teacher's score: {kept}\nresults: {comparison.folder / 'results.md'}")


def score_vectors(
    args: EvaluationArguments,
    embedding_args: embeddings.EmbeddingArguments,
    tasks: list[embeddings.EmbeddingData],
) -> None:
    """Score the sentence vectors of teacher, student and others, as they are."""
    encoders: dict[str, embeddings.Encoder] = {
        name: embeddings.load_encoder(path, name) for name, path in args.sentence_encoders.items()
    }
    if "cut" in embedding_args.vector_baselines:
        encoders["cut"] = embeddings.cut_baseline(args.teacher, args.student)
    if "static" in embedding_args.vector_baselines:
        encoders["static"] = embeddings.static_baseline(args.teacher)
    results = embeddings.evaluate_embedders(
        encoders,
        tasks,
        args.output_dir,
        teacher_index=["student"] if embedding_args.teacher_index else [],
        min_share=embedding_args.min_share,
        resamples=embedding_args.resamples,
    )
    if args.update_card:
        write_scores_into_card(results, args.student)
    logger.info(f"sentence vectors: {args.output_dir}/embeddings.md\n{results.summary()}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, ImportError) as error:
        # bad input: the message says what to do, a traceback would hide it
        sys.exit(f"error: {error}")
