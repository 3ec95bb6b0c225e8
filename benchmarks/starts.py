"""What a student should start from: which of its teacher's layers, or its embeddings alone.

    python benchmarks/starts.py --preset short
    python benchmarks/starts.py --preset long --dataset raw/*.txt.xz
    python benchmarks/starts.py --preset long --task wikiann --data_dir ner

`short` distils one shape (3 layers x 384, 12 heads, FFN 1536) by hidden states for 200 steps of 32 texts, from exact
copies of its teacher's layers and from its embeddings, and measures the teacher's own shape before the first step. Its
last line is one JSON object of these R² (`same_shape_r2`, `layers`, `embeddings`).

`long` compares sets of layers, for students of 2 and 3 layers, after 200 and 2,000 steps, at two learning rates; with
`--task` the teacher is fine-tuned on the task first, students learn its logits alone, on the text of all languages that
the folder has, and the mean score over languages is compared. All students of a table train in one pool: each exactly
as if alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import datasets
from transformers import PreTrainedModel

from distillation_setting import add_arguments, describe_machine, load_setting, shape, training_arguments
from kdnas_hf import (
    DistillationTrainer,
    EvaluationArguments,
    StudentPool,
    Task,
    Teacher,
    load_task_data,
    share_cpu_threads,
)
from kdnas_hf.data.batching import digest_of_texts
from kdnas_hf.evaluation.encoding import encode_examples
from kdnas_hf.evaluation.finetuning import ModelSource, fine_tune, score_languages, scoring_trainer

# sets of teacher layers, by their number
LAYERS = {
    1: ["1", "4", "6", "12"],
    2: ["1 2", "1 6", "4 8", "3 9", "2 8", "3 12", "6 12", "1 12", "9 12", "11 12"],
    3: ["1 2 3", "1 2 12", "1 6 12", "4 8 12", "1 5 9", "2 6 10", "3 6 9", "2 5 8", "10 11 12"],
    4: ["2 5 8 11", "3 6 9 12", "2 5 7 10", "1 4 8 12", "1 2 3 4"],
    6: ["1 3 5 7 9 11", "2 4 6 8 10 12", "1 2 3 4 5 6"],
}
FLOAT32 = {"bf16": False, "teacher_dtype": "bfloat16"}
LENGTHS = {200: (3e-3,), 2000: (1e-3, 3e-3)}


def make_pool(teacher: Teacher, starts: Mapping[str, Mapping[str, Any]], recipe: Mapping[str, Any], args: Any) -> Any:
    """Students with a start each, in one pool.

    Args:
        teacher: The teacher.
        starts: By name: ``shape``, and the arguments of the start.
        recipe: Arguments of the distillation.
        args: Of the benchmark.
    """
    members, required = {}, None
    for name, start in starts.items():
        given = {key: value for key, value in start.items() if key != "shape"}
        own = training_arguments("unused", args.seed, {**recipe, **given})
        pool = StudentPool.create({name: shape(teacher, *start["shape"])}, teacher, own)
        members[name] = pool.members[name]
        required = pool.required if required is None else required | pool.required
    return StudentPool(cast(Any, members), required=required)


def distil(
    teacher: Teacher, starts: Mapping[str, Any], recipe: Mapping[str, Any], train: Any, heldout: Any, args: Any
) -> tuple[DistillationTrainer, dict[str, float]]:
    """Distil all students together; the trainer, and its held-out metrics."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = DistillationTrainer(
            make_pool(teacher, starts, recipe, args),
            teacher,
            training_arguments(folder, args.seed, recipe),
            train_dataset=train,
            eval_dataset=heldout,
        )
        trainer.train()
        return trainer, trainer.evaluate() if heldout is not None else {}


def short(args: Any) -> None:
    """One shape, two starts, 200 steps."""
    setting = load_setting(args, sentences=200 * 32, heldout=1000)
    print(
        f"{describe_machine()}\n200 steps of 32 texts; texts {digest_of_texts(setting.train)[:12]}; seed {args.seed}\n"
    )
    teacher, r2 = setting.teacher, {}
    dimensions = teacher.dimensions
    own = (dimensions.num_layers, dimensions.hidden_size, dimensions.num_attention_heads)
    ffn = int(teacher.model.config.intermediate_size)
    arguments = training_arguments("unused", args.seed, {"bf16": False})
    heldout = setting.heldout.select(range(128))
    same = DistillationTrainer(shape(teacher, *own, ffn), teacher, arguments, setting.train, heldout).evaluate()
    r2["same_shape_r2"] = same["eval_r2"]
    given = (3, dimensions.hidden_size, dimensions.num_attention_heads, ffn)
    starts = {name: {"shape": given, "student_init": name} for name in ("layers", "embeddings")}
    _, metrics = distil(teacher, starts, {"max_steps": 200}, setting.train, setting.heldout, args)
    print("| start | R² by student layer |\n| --- | --- |")
    for name in starts:
        r2[name] = metrics[f"eval_{name}_r2"]
        layers = " ".join(f"{metrics[f'eval_{name}_r2_layer_{layer}']:.3f}" for layer in (1, 2, 3))
        print(f"| {name} | {layers} |")
    print(json.dumps({name: round(value, 5) for name, value in r2.items()}))


def all_starts(teacher: Teacher, depth: int, args: Any, embeddings: bool) -> dict[str, dict[str, Any]]:
    """All starts that are compared, for one depth."""
    ffn, size = int(teacher.model.config.intermediate_size), teacher.dimensions.hidden_size
    heads = teacher.dimensions.num_attention_heads
    given = (depth, size, heads, ffn)
    chosen = [layers for layers in args.layers or LAYERS[depth] if len(layers.split()) == depth]
    starts: dict[str, dict[str, Any]] = {
        f"layers_{layers.replace(' ', '_')}": {"shape": given, "student_layers": [int(n) for n in layers.split()]}
        for layers in chosen
    }
    if embeddings:
        starts["embeddings"] = {"shape": given, "student_init": "embeddings"}
        starts["embeddings_288"] = {"shape": (depth, 288, heads // 2, 1024), "student_init": "embeddings"}
    return starts


def long(args: Any) -> None:
    """Sets of layers, by hidden states."""
    steps = args.steps or list(LENGTHS)
    print(f"{describe_machine()}\nhidden states, batches of 32 texts")
    results: dict[str, float] = {}
    for length in steps:
        setting = load_setting(args, sentences=length * 32, heldout=1000)
        print(f"texts {digest_of_texts(setting.train)[:12]}\n")
        for depth in args.depths:
            for rate in args.rates or LENGTHS.get(length, (1e-3, 3e-3)):
                recipe = {"max_steps": length, "learning_rate": rate, **(FLOAT32 if args.float32 else {})}
                starts = all_starts(setting.teacher, depth, args, embeddings=not args.layers)
                trainer, metrics = distil(setting.teacher, starts, recipe, setting.train, setting.heldout, args)
                _print_table(
                    f"{depth} layers, {length} steps, learning rate {rate:g}: R² of the last layer",
                    {name: metrics.get(f"eval_{name}_r2", float("nan")) for name in starts},
                    results,
                )
                del trainer
                gc.collect()
    print(json.dumps(results))


def task(args: Any) -> None:
    """Sets of layers, by a fine-tuned teacher's logits alone, on text of all languages."""
    share_cpu_threads(args.threads)
    chosen = Task.load(args.task)
    data = load_task_data(chosen, args.data_dir, max_train_examples=4000, max_test_examples=args.test_examples)
    budget = EvaluationArguments(
        tasks=[args.task], num_train_epochs=args.teacher_epochs, max_length=args.max_length, learning_rates=[2e-4]
    )
    with tempfile.TemporaryDirectory() as folder:
        tuned = fine_tune(ModelSource(args.teacher), data, budget, args.seed)
        teacher = Teacher(cast(PreTrainedModel, tuned.model), tuned.tokenizer, name=args.teacher)
        texts = []
        for language in data.test:
            own = dataclasses.replace(chosen, train_language=language)
            part = load_task_data(own, args.data_dir, [language], args.texts_per_language, 1)
            texts.append(encode_examples(part.train.examples, tuned.tokenizer, args.max_length).dataset)
        train = datasets.concatenate_datasets(texts).shuffle(seed=args.seed)
        score = _score(tuned.model, tuned.tokenizer, data, budget, folder)
        print(f"{describe_machine()}\n{args.task}, {len(train):,} texts of {len(data.test)} languages")
        print(f"teacher {score:.1f}\n")
        results = {"teacher": score}
        for depth in args.depths:
            recipe = {
                "losses": ["soft_labels"],
                "temperature": 1.0,
                "num_train_epochs": args.epochs,
                "learning_rate": 5e-4,
                "global_train_batch_size": 64,
                **(FLOAT32 if args.float32 else {}),
            }
            starts = all_starts(teacher, depth, args, embeddings=False)
            trainer, _ = distil(teacher, starts, recipe, train, None, args)
            scores = {
                name: _score(model, tuned.tokenizer, data, budget, folder)
                for name, model in trainer.pool.models.items()
            }
            _print_table(f"{depth} layers, {args.epochs:g} passes: mean {chosen.metric}", scores, results)
            del trainer
            gc.collect()
    print(json.dumps(results))


def _score(model: Any, tokenizer: Any, data: Any, budget: Any, folder: str) -> float:
    scorer = scoring_trainer(model, tokenizer, data, budget, folder)
    scores, _ = score_languages(scorer, tokenizer, data, budget.max_length)
    primary = [next(iter(values.values())) for values in scores.values()]
    return 100 * sum(primary) / len(primary)


def _print_table(title: str, scores: Mapping[str, float], results: dict[str, float]) -> None:
    print(f"**{title}**\n\n| start | |\n| --- | --- |")
    for name, value in sorted(scores.items(), key=lambda item: -item[1]):
        print(f"| {name.replace('_', ' ', 1).replace('_', ', ')} | {value:.4g} |", flush=True)
        results[f"{title.split(':')[0]}, {name}"] = round(value, 4)
    print(flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--steps", type=int, nargs="*", help="optimizer steps of the tables; by default 200 and 2000")
    parser.add_argument("--rates", type=float, nargs="*", help="learning rates of the tables; by default 1e-3, 3e-3")
    parser.add_argument("--depths", type=int, nargs="*", default=[2, 3])
    parser.add_argument("--layers", nargs="*", help="sets of layers instead of those of the tables, as '3 9' '2 6 10'")
    parser.add_argument(
        "--float32", action="store_true", help="students in float32 on any machine; the teacher in bf16"
    )
    parser.add_argument("--task", help="wikiann or another task, with --data_dir")
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--texts_per_language", type=int, default=400)
    parser.add_argument("--test_examples", type=int, default=100)
    parser.add_argument("--teacher_epochs", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=1.0)
    args = parser.parse_args(argv)
    if args.task:
        task(args)
    elif args.preset == "short":
        short(args)
    else:
        long(args)


if __name__ == "__main__":
    main()
