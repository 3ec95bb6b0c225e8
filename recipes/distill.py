"""Distil a teacher into a student whose shape you know, without a search.

    accelerate launch recipes/distill.py recipes/configs/distill.yaml
    accelerate launch recipes/distill.py recipes/configs/distill.yaml --losses relations --output_dir runs/relations
    accelerate launch recipes/distill.py recipes/configs/distill.yaml --num_attention_heads 4 6 6 --embedding_size 96

Every field of the four argument classes is a flag and a key of the YAML file; flags win. Started again with the same
arguments, it goes on from its last checkpoint. The student is left in ``student/``, what it explains of the teacher on
held-out text in ``heldout.json``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed
from transformers.utils import logging

from kdnas_hf import (
    DataArguments,
    DistillationTrainingArguments,
    StudentArguments,
    TeacherArguments,
    TrainingSetup,
    check_writable,
    document_distillation,
    end_processes,
    languages_of,
    load_corpus,
    load_teacher,
    parse_arguments,
    refuse_other_run,
    set_up_logging,
    settle_configuration,
    share_cpu_threads,
    split_corpus,
    student_config,
    tokenize_corpus,
)
from kdnas_hf.data import parse_prompts
from kdnas_hf.distillation import distill, training_configuration

logger = logging.get_logger("kdnas_hf.recipes.distill")


class _SettleCallback(TrainerCallback):
    """Binds the directory to its configuration when the first training begins, and not before all was checked."""

    def __init__(self, folder: Path, configuration: dict) -> None:
        self.folder, self.configuration = folder, configuration

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the configuration."""
        if state.is_world_process_zero:
            settle_configuration(self.folder, self.configuration)


def main(argv: list[str] | None = None) -> None:
    """Distil what the command line asks for."""
    teacher_args, data_args, student_args, training_args = parse_arguments(
        (TeacherArguments, DataArguments, StudentArguments, DistillationTrainingArguments), argv
    )
    architecture = student_args.architecture
    set_up_logging(is_main_process=training_args.process_index == 0)
    share_cpu_threads(training_args.cpu_threads)
    set_seed(training_args.seed)
    folder = Path(training_args.output_dir)
    shapes = [(architecture.hidden_size, architecture.num_hidden_layers)]
    configuration = {
        **asdict(teacher_args),
        "student": architecture.as_dict(),
        "data": data_args.identity(),
        "training": training_configuration(training_args),
    }
    check_writable(folder)
    with training_args.main_process_first(desc="teacher and text"):
        refuse_other_run(folder, configuration)
        teacher = load_teacher(
            teacher_args.teacher,
            revision=teacher_args.teacher_revision,
            head=training_args.head_for_text(),
            check=lambda teacher: training_args.start.check(teacher.hidden_size, teacher.num_layers, shapes),
        )
        config = student_config(teacher, architecture)
        prompts = parse_prompts(data_args.prompts, teacher.prompts)
        corpus = load_corpus(data_args)
        stage_corpora = {
            stage.dataset: load_corpus(dataclasses.replace(data_args, dataset=[stage.dataset]))
            for stage in training_args.stage_list
            if stage.dataset is not None
        }
    splits = split_corpus(corpus, data_args.heldout_sentences, data_args.proxy_fraction, seed=training_args.seed)
    tokenize = partial(tokenize_corpus, tokenizer=teacher.tokenizer, max_length=data_args.max_length, prompts=prompts)
    train, heldout = tokenize(splits.train), tokenize(splits.heldout)
    logger.info(
        f"teacher: {teacher.name}; student: {architecture}; {len(train):,} texts to train on, {len(heldout):,} held out"
    )

    texts = {"": train} | {name: tokenize(text) for name, text in stage_corpora.items()}
    # only now: nothing is left of what was refused
    settles = [_SettleCallback(folder, configuration)]
    trainer = distill(config, teacher, training_args, texts, heldout, callbacks=settles)
    if not trainer.pool.active:
        raise ValueError(f"learning_rate={training_args.learning_rate}: the student diverged; lower it.")
    metrics = trainer.evaluate()
    trainer.save_model(str(folder / "student"))
    if trainer.is_world_process_zero():
        (folder / "heldout.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        setup = TrainingSetup(
            teacher,
            teacher_args,
            data_args,
            sentences=len(splits.train),
            languages=languages_of(corpus),
            command=["accelerate", "launch", "recipes/distill.py", *(sys.argv[1:] if argv is None else argv)],
        )
        document_distillation(folder / "student", setup, training_args, metrics, trainer.state.log_history)
    logger.info(f"student: {folder / 'student'}   held-out text: {folder / 'heldout.json'}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, ImportError) as error:
        # bad input: the message says what to do, a traceback would hide it
        sys.exit(f"error: {error}")
    finally:
        end_processes()
