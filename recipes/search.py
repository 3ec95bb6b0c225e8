"""Search for the best small student of a teacher, distil it and leave it in the run directory.

    accelerate launch recipes/search.py recipes/configs/quickstart.yaml
    accelerate launch recipes/search.py recipes/configs/quickstart.yaml --num_episodes 2 --output_dir runs/short

Every field of the four argument classes is a flag and a key of the YAML file; flags win. Started again with the same
arguments, it goes on where it was.
"""

from __future__ import annotations

import sys

from transformers import set_seed
from transformers.utils import logging

from kdnas_hf import (
    ArchitectureSearch,
    DataArguments,
    DistillationTrainingArguments,
    SearchArguments,
    SearchError,
    SearchSpace,
    StorageError,
    TeacherArguments,
    TrainingSetup,
    check_search,
    check_shapes,
    check_writable,
    document_search,
    end_processes,
    languages_of,
    load_corpus,
    load_teacher,
    parse_arguments,
    set_up_logging,
    share_cpu_threads,
    split_corpus,
    tokenize_corpus,
)
from kdnas_hf.data import parse_prompts
from kdnas_hf.evaluation import TaskProbe, load_probe_data, parse_quality
from kdnas_hf.hub import trim_students

logger = logging.get_logger("kdnas_hf.recipes.search")


def main(argv: list[str] | None = None) -> None:
    """Run the search that the command line asks for."""
    teacher_args, data_args, search_args, training_args = parse_arguments(
        (TeacherArguments, DataArguments, SearchArguments, DistillationTrainingArguments), argv
    )
    set_up_logging(is_main_process=training_args.process_index == 0)
    share_cpu_threads(training_args.cpu_threads)
    set_seed(training_args.seed)
    check_writable(training_args.output_dir)
    space = SearchSpace.load(search_args.space)

    _, task = parse_quality(search_args.quality)
    configuration = {"data": data_args.identity(), "teacher_revision": teacher_args.teacher_revision}
    with training_args.main_process_first(desc="teacher and text"):
        probe_data = None if task is None else load_probe_data(task, search_args.data_dir)
        if probe_data is not None:
            configuration["probe"] = probe_data.fingerprint()
        teacher = load_teacher(
            teacher_args.teacher,
            revision=teacher_args.teacher_revision,
            head=training_args.head_for_text(),
            check=lambda teacher: check_shapes(teacher, space, search_args, training_args),
        )
        prompts = parse_prompts(data_args.prompts, teacher.prompts)
        check_search(teacher, space, search_args, training_args, configuration)
        corpus = load_corpus(data_args)
    splits = split_corpus(corpus, data_args.heldout_sentences, data_args.proxy_fraction, seed=training_args.seed)
    tokenized = {
        name: tokenize_corpus(getattr(splits, name), teacher.tokenizer, data_args.max_length, prompts)
        for name in ("train", "proxy", "heldout")
    }
    logger.info(
        f"teacher: {teacher.name}; texts: {len(splits.train):,} to train on, {len(splits.proxy):,} of them in the "
        f"proxy set, {len(splits.heldout):,} held out; space: {space.size:,} architectures"
    )

    search = ArchitectureSearch(
        teacher=teacher,
        space=space,
        train_dataset=tokenized["train"],
        proxy_dataset=tokenized["proxy"],
        heldout_dataset=tokenized["heldout"],
        args=search_args,
        training_args=training_args,
        quality=None if probe_data is None else TaskProbe(probe_data, teacher.tokenizer, data_args.max_length),
        configuration=configuration,
    )
    result = search.run()
    if not search.is_main or not result.students:  # of several workers one distils the students
        return
    setup = TrainingSetup(
        teacher,
        teacher_args,
        data_args,
        sentences=len(splits.train),
        languages=languages_of(corpus),
        command=["accelerate", "launch", "recipes/search.py", *(sys.argv[1:] if argv is None else argv)],
    )
    document_search(result, setup, search_args, training_args, space=space.size)
    if search_args.trim_vocabulary:
        trim_students(result, data_args, training_args.seed, setup.command)
    best = result.students[0]
    logger.info(
        f"best student: {best.architecture}, {best.speedup:.1f}x faster than its teacher "
        f"({best.latency.student_ms:.1f} ms against {best.latency.teacher_ms:.1f} ms), {search.setting.quality.label} "
        f"{best.quality:.3f} on held-out text\n"
        f"student: {result.folder / best.path}   report: {result.folder / 'report.md'}"
    )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, ImportError, SearchError, StorageError) as error:
        # bad input: the message says what to do, a traceback would hide it
        sys.exit(f"error: {error}")
    finally:
        end_processes()
