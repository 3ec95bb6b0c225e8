"""How fast an episode's candidates are distilled: together, against one by one with the published recipe.

    python benchmarks/distillation_speed.py --preset short

Eight candidates, three epochs over the same proxy set, in one process, one after another:

- `published`: each alone as published, its teacher recomputed for each candidate and epoch, its word embeddings random
  and all of them trained;
- `published, occurring rows` (`--preset long`): the same, but only the word embeddings that occur are trained, which
  gives the same students;
- `one by one`: each alone with the default recipe, the teacher recomputed as well;
- `pool`: all in one pool with the default recipe, the teacher's states computed once. Its time includes computing them.

All take the same texts in the same order, the same batches and the same precision, and each is evaluated once on the
same held-out texts. The last line is one JSON object: the time of `published` by the time of `pool` (the median over
repetitions), and the greatest difference of a candidate's held-out loss between `one by one` and `pool`.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import torch

from distillation_setting import (
    PUBLISHED,
    Setting,
    add_arguments,
    describe_machine,
    load_setting,
    shape,
    training_arguments,
)
from kdnas_hf import DistillationTrainer, StudentPool
from kdnas_hf.distillation import cache_teacher_states
from kdnas_hf.students import KDNASConfig

# layers, hidden size, heads, FFN, activation: shapes of the search space of the quickstart and around it
CANDIDATES = (
    (2, 192, 6, 768, "gelu"),
    (2, 288, 6, 1024, "relu"),
    (2, 384, 12, 1024, "gelu"),
    (3, 192, 6, 1024, "gelu"),
    (3, 288, 6, 768, "relu"),
    (3, 384, 6, 1024, "gelu"),
    (4, 192, 6, 512, "gelu"),
    (4, 288, 12, 1024, "gelu"),
)
SENTENCES = {"short": 640, "long": 1600}
REPEATS = {"short": 1, "long": 3}


def distil(
    setting: Setting, students: Mapping[str, KDNASConfig], recipe: Mapping[str, Any], seed: int
) -> tuple[float, dict[str, float]]:
    """Distil some students together; the seconds that it took, and the held-out loss of each."""
    with tempfile.TemporaryDirectory() as folder:
        args = training_arguments(folder, seed, {"num_train_epochs": 3, **recipe})
        started = time.perf_counter()
        pool = StudentPool.create(students, setting.teacher, args)
        # as a search does it: before the first pool, for all of them
        if args.bf16:
            setting.teacher.to_dtype(torch.bfloat16)
        texts = [setting.train, setting.heldout]
        states = cache_teacher_states(setting.teacher, texts, pool.features, args, passes=args.num_train_epochs)
        train_states, eval_states = states or (None, None)
        trainer = DistillationTrainer(
            model=pool,
            teacher=setting.teacher,
            args=args,
            train_dataset=setting.train,
            eval_dataset=setting.heldout,
            train_states=train_states,
            eval_states=eval_states,
        )
        trainer.train()
        metrics = trainer.evaluate()
        seconds = time.perf_counter() - started
    if len(students) == 1:
        losses = dict.fromkeys(students, metrics["eval_loss"])
    else:
        losses = {name: metrics[f"eval_{name}_loss"] for name in students}
    del trainer
    gc.collect()
    return seconds, losses


def one_by_one(
    setting: Setting, students: Mapping[str, KDNASConfig], recipe: Mapping[str, Any], seed: int
) -> tuple[float, dict[str, float]]:
    """Distil each student alone."""
    seconds = 0.0
    losses: dict[str, float] = {}
    for name, config in students.items():
        took, loss = distil(setting, {name: config}, recipe, seed)
        seconds += took
        losses |= loss
    return seconds, losses


def main() -> None:
    """Time the three ways side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--sentences", type=int, default=None, help="texts of the proxy set; by default the preset's")
    args = parser.parse_args()
    setting = load_setting(args, sentences=args.sentences or SENTENCES[args.preset], heldout=256)
    students = {f"candidate_{i + 1}": shape(setting.teacher, *given) for i, given in enumerate(CANDIDATES)}
    _ = setting.teacher.embeddings  # the basis is computed once for a search, and is not what is timed
    print(
        f"{describe_machine()}\n{len(students)} candidates x 3 epochs x {len(setting.train):,} texts "
        f"({sum(setting.train['length']):,} tokens), batches of 32, seed {args.seed}\n"
    )
    ways = {"published": PUBLISHED, "one by one": {"cache_teacher_states": "false"}}
    if args.preset == "long":
        ways["published, occurring rows"] = PUBLISHED | {"occurring_embeddings": True}
    times: dict[str, list[float]] = {name: [] for name in (*ways, "pool")}
    difference = 0.0
    for _repeat in range(REPEATS[args.preset]):
        seconds, pooled = distil(setting, students, {}, args.seed)
        times["pool"].append(seconds)
        for way, recipe in ways.items():
            seconds, losses = one_by_one(setting, students, recipe, args.seed)
            times[way].append(seconds)
            if way == "one by one":
                difference = max(difference, *(abs(pooled[name] - losses[name]) for name in students))
    pool = statistics.median(times["pool"])
    print("| | seconds, median (lowest to highest) | against the pool |\n| --- | --- | --- |")
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.1f} ({min(values):.1f} to {max(values):.1f}) | {middle / pool:.2f}x |")
    ratios = [p / q for p, q in zip(times["published"], times["pool"], strict=True)]
    print(json.dumps({"speedup": round(statistics.median(ratios), 2), "max_loss_difference": round(difference, 6)}))


if __name__ == "__main__":
    main()
