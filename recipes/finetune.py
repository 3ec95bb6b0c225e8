"""Fine-tune any encoder, student or teacher, on a task with a plain `Trainer`, and score it in every language.

    python recipes/finetune.py --model runs/quickstart/student --task intents --output_dir runs/intents \
        --learning_rate 5e-4 --num_train_epochs 8
    python recipes/finetune.py --model FacebookAI/xlm-roberta-base --task wikiann --output_dir runs/wikiann

Every field of `TaskArguments` and of transformers' `TrainingArguments` is a flag. The model is left in ``model/``, its
scores in ``scores.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from kdnas_hf import Task, end_processes, load_task_data, parse_arguments, set_up_logging
from kdnas_hf.evaluation import (
    ModelSource,
    ScoreOnValidation,
    TaskArguments,
    best_labels,
    encode_examples,
    score_languages,
    task_collator,
)

logger = logging.get_logger("kdnas_hf.recipes.finetune")


def main(argv: list[str] | None = None) -> None:
    """Fine-tune what the command line asks for."""
    args, training_args = parse_arguments((TaskArguments, TrainingArguments), argv)
    set_up_logging(is_main_process=training_args.process_index == 0)
    grouping = (
        getattr(training_args, "group_by_length", False)
        or getattr(training_args, "train_sampling_strategy", None) == "group_by_length"
    )
    if grouping:
        raise ValueError("grouping by length reorders evaluation sets as well; leave it out to have them scored.")
    set_seed(training_args.seed)
    folder = Path(training_args.output_dir)
    data = load_task_data(
        Task.load(args.task), args.data_dir, args.languages, args.max_train_examples, args.max_test_examples
    )
    source = ModelSource(args.model)
    tokenizer = source.load_tokenizer()
    model = source.load_model(data.task, data.labels)
    train = encode_examples(data.train.examples, tokenizer, args.max_length)
    validation = encode_examples(data.validation.examples, tokenizer, args.max_length)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train.dataset,
        eval_dataset=validation.dataset,
        data_collator=task_collator(data.task, tokenizer),
        processing_class=tokenizer,
        compute_metrics=ScoreOnValidation(data, validation),
        preprocess_logits_for_metrics=best_labels,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
    metrics = trainer.evaluate()
    scores, truncated = score_languages(trainer, tokenizer, data, args.max_length)
    trainer.save_model(str(folder / "model"))
    if trainer.is_world_process_zero():
        found = {"task": data.task.name, "validation": metrics, "test": scores, "truncated": truncated}
        text = json.dumps(found | {"data": data.describe()}, indent=2, ensure_ascii=False)
        (folder / "scores.json").write_text(text + "\n", encoding="utf-8")
    logger.info(f"model: {folder / 'model'}   scores: {folder / 'scores.json'}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, ImportError) as error:
        # bad input: the message says what to do, a traceback would hide it
        sys.exit(f"error: {error}")
    finally:
        end_processes()
