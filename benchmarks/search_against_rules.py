"""Does a searched student beat the shapes that an engineer would pick by hand, at equal latency and training?

    python benchmarks/search_against_rules.py --preset short     # 2x and 4x at mini scale, on the embedded text
    python benchmarks/search_against_rules.py --preset full --dataset FILE [FILE …] --max_length 128 --threads 1 \
        --tasks wikiann intents --data_dir FOLDER
    python benchmarks/search_against_rules.py --preset full … --part 1/2     # beside a process with --part 2/2

A search runs as `recipes/search.py` does, once for all speed-ups. For each, its winner, rules of thumb that fill what
the speed-up allows, and random members of the space within 3 % of that are then timed side by side and distilled alike:
the same texts in the same order from the same start, each with the better of two learning rates on a tenth of the
training. All are distilled with one seed, the winner and the best two rules with further ones. Of each student the R²
on held-out text is compared, and the scores of linear classifiers of ``--tasks`` on its states.
Rows are kept in ``--output_dir``; started again, it goes on. Printed is a table with the interval of a difference over
seeds, the cost of the search beside that of trying the rules, and as the last line one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distillation_setting import (
    Setting,
    add_arguments,
    describe_machine,
    load_setting,
    make_trainer,
    training_arguments,
)
from kdnas_hf import Architecture, ArchitectureSearch, SearchArguments, SearchSpace, student_config
from kdnas_hf.distillation import teacher_shape
from kdnas_hf.distillation.pool import required_by
from kdnas_hf.distillation.stored_targets import store_targets
from kdnas_hf.evaluation import Task, TaskProbe
from kdnas_hf.export import LatencyModel
from kdnas_hf.export.architecture_latencies import ArchitectureLatencies
from kdnas_hf.latency import Latency
from kdnas_hf.search.controllers.rules_of_thumb import usual_shapes
from kdnas_hf.search.report import Comparison, compare, comparison_table
from kdnas_hf.search.result import RANDOM, SEARCH, Confirmation
from kdnas_hf.search.rules import TOLERANCE, random_architectures, rules_of_thumb

RATES = (1e-3, 3e-3)
PILOT = 0.1  # of the steps, for the choice of the learning rate
SEEDED_RULES = 2  # rules of thumb, the best with one seed, that are distilled with further ones


@dataclass(frozen=True)
class Scale:
    """How large the experiment is.

    Attributes:
        speedups: Budgets.
        space: Name of the search space's preset.
        depths: Numbers of layers, if others than the preset's.
        sentences: Texts to train on; steps that are more than one pass go over them again.
        steps: Steps of 32 texts of a distillation.
        seeds: Seeds of it, for the winner and the best rules; others have one.
        rules: Rules of thumb at most.
        random: Random shapes.
        episodes: Episodes of the search, of five candidates each.
        mini_kd: Texts of a mini-KD.
        confirm_seeds: Further seeds of the search's confirmation.
    """

    speedups: tuple[float, ...]
    space: str
    depths: tuple[int, ...] | None
    sentences: int
    steps: int
    seeds: int
    rules: int
    random: int
    episodes: int
    mini_kd: int
    confirm_seeds: int

    @property
    def search_space(self) -> SearchSpace:
        """The space."""
        space = SearchSpace.load(self.space)
        return space if self.depths is None else replace(space, num_hidden_layers=self.depths)


SCALES = {
    "short": Scale((2.0, 4.0), "quickstart", (2, 3, 4, 5, 6), 2560, 80, 2, 2, 2, 2, 1600, 1),
    "full": Scale((7.0,), "layers", None, 56_000, 3700, 3, 3, 4, 4, 19_200, 2),
}


def search(setting: Setting, scale: Scale, folder: Path, seed: int) -> tuple[dict[float, Architecture], float]:
    """The shape that a search finds for each speed-up, and the minutes that it took; a killed search is resumed."""
    several = len(scale.speedups) > 1
    budgets: dict[str, Any] = {"speedup_budgets": list(scale.speedups)} if several else {"speedup": scale.speedups[0]}
    found = ArchitectureSearch(
        teacher=setting.teacher,
        space=scale.search_space,
        train_dataset=setting.train,
        proxy_dataset=setting.train.select(range(scale.mini_kd)),
        heldout_dataset=setting.heldout,
        args=SearchArguments(
            num_episodes=scale.episodes,
            candidates_per_episode=5,
            mini_kd_epochs=1,
            reward_alpha=0,
            confirm_seeds=scale.confirm_seeds,
            compare=0,
            **budgets,
        ),
        # the full distillation is ours: here it is one step
        training_args=training_arguments(
            folder, seed, {"learning_rate": 3e-3, "max_steps": 1, "save_strategy": "steps", "save_steps": 100}
        ),
    ).run()
    minutes = (found.cost["total"] - found.cost.get("distillation", 0.0)) / 60
    winners = {}
    for speedup in scale.speedups:
        able = [one for one in found.confirmations if one.speedup >= speedup] or found.confirmations
        winners[speedup] = max(able, key=lambda one: one.quality).architecture
    return winners, minutes


def contestants(
    setting: Setting, scale: Scale, speedup: float, winner: Architecture, seed: int
) -> dict[Architecture, tuple[str, Latency, Mapping[str, float]]]:
    """Winner, rules and random shapes with origin, latency and costs, timed side by side."""
    teacher, space = setting.teacher, scale.search_space
    latencies = ArchitectureLatencies(
        teacher.model, lambda one: student_config(teacher, one), SearchArguments(latency_repeats=45).latency_benchmark
    )
    # the usual shapes as well: a rule must not be left out because its latency was predicted from far away
    usual = usual_shapes(space, teacher_shape(teacher))
    drawn = random_architectures(space, _all_alike, 1.0, 24, seed)
    design = {one: i for i, one in enumerate(dict.fromkeys([winner, *usual, *drawn]))}
    timed = latencies.measure({i: one for one, i in design.items()}, repeats=15)
    predict = LatencyModel.fit({one: 1 / timed[i].speedup for one, i in design.items()})
    level = 1 / speedup  # whoever picks by hand takes all that the budget allows, whatever the search found
    shapes = {winner: SEARCH}
    for name, one in rules_of_thumb(space, teacher_shape(teacher), predict, level, scale.rules).items():
        shapes.setdefault(one, name)
    for one in random_architectures(space, predict, level, scale.random, seed, list(shapes)):
        shapes[one] = RANDOM
    measured = latencies.measure(dict(enumerate(shapes)), repeats=45)
    costs = latencies.shape_costs(list(shapes))
    return {
        one: (origin, measured[i], {name: float(values[i]) for name, values in costs.items()})
        for i, (one, origin) in enumerate(shapes.items())
    }


def _all_alike(architectures: Sequence[Architecture]) -> np.ndarray:
    return np.ones(len(architectures))


def distil(
    setting: Setting,
    texts: Sequence[Any],
    architecture: Architecture,
    steps: int,
    rate: float,
    seed: int,
    probes: Mapping[str, TaskProbe],
) -> dict[str, Any]:
    """Quality, scores of tasks, tokens and seconds of one distillation."""
    with tempfile.TemporaryDirectory() as folder:
        training = training_arguments(folder, seed, {"max_steps": steps, "learning_rate": rate})
        config = student_config(setting.teacher, architecture)
        started = time.monotonic()
        trainer = make_trainer(setting, {"student": config}, training, train_dataset=texts[0], eval_dataset=texts[1])
        trainer.train()
        metrics = trainer.evaluate()
        seconds = time.monotonic() - started
    quality = trainer.pool.measured.get("student", {"r2": 0.0})["r2"]
    scores = {name: probe({}, trainer.pool.students["student"]) for name, probe in probes.items()}
    del trainer
    gc.collect()
    tokens = int(metrics.get("eval_trained_tokens", 0))
    return {"quality": quality, "scores": scores, "tokens": tokens, "seconds": seconds}


class Rows:
    """What was distilled, kept line by line for several processes.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """All rows."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.is_file() else []

    def find(self, **what: Any) -> dict[str, Any] | None:
        """The row of these values, if there is one."""
        return next((row for row in self.read() if what.items() <= row.items()), None)

    def add(self, **row: Any) -> dict[str, Any]:
        """Write a row, and return it; a line is written at once, so that processes do not mix theirs."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row


def main() -> None:
    """Search, then compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.set_defaults(preset="short")
    for action in parser._actions:
        if action.dest == "preset":
            action.choices = tuple(SCALES)
    parser.add_argument("--tasks", nargs="*", default=[], help="as --quality probe:<task> of recipes/search.py")
    parser.add_argument("--data_dir", default=None, help="folder of local files of the tasks")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/search_against_rules"))
    parser.add_argument(
        "--part", default="1/1", help="K/N: every Nth distillation, from the Kth; the search is the 1st's"
    )
    args = parser.parse_args()
    scale = SCALES[args.preset]
    part, parts = (int(number) for number in args.part.split("/"))
    folder = args.output_dir / args.preset
    folder.mkdir(parents=True, exist_ok=True)
    setting = load_setting(args, sentences=scale.sentences, heldout=1000)
    probes = {}
    for task in args.tasks:
        folder_of_task = args.data_dir if Task.load(task).embedded is None else None
        probes[task] = TaskProbe.load(task, setting.teacher.tokenizer, args.max_length, folder_of_task)
    print(f"{describe_machine()}\n{scale}\n", flush=True)
    rows, result = Rows(folder / "rows.jsonl"), {}
    for speedup in scale.speedups:
        found = found_once(setting, scale, folder, args.seed, waits=part > 1)
        shapes = {
            Architecture(**one["architecture"]): (one["origin"], Latency(**one["latency"]), one["costs"])
            for one in found["contestants"][f"{speedup:g}x"]
        }
        training = training_arguments(folder, args.seed, {})
        depths = {*scale.search_space.num_hidden_layers, *(one.num_hidden_layers for one in shapes)}
        required = required_by(training, setting.teacher, sorted(depths))
        dtype = training.teacher_torch_dtype or torch.float32
        texts = [
            store_targets(setting.teacher, one, required, folder / "targets", dtype=dtype, batch_size=64)
            for one in (setting.train, setting.heldout)
        ]
        work = Work(setting, texts, scale, speedup, rows, args.seed, probes)
        for architecture in list(shapes)[part - 1 :: parts]:
            work.distil_with(architecture, args.seed + 1)
        rivals = [one for one, (origin, _, _) in shapes.items() if origin not in (SEARCH, RANDOM)]
        first = work.wait_for([(one, args.seed + 1) for one in shapes])
        best = sorted(rivals, key=lambda one: -first[one, args.seed + 1]["quality"])[:SEEDED_RULES]
        seeds = range(args.seed + 2, args.seed + 1 + scale.seeds)
        further = [(one, seed) for seed in seeds for one in (next(iter(shapes)), *best)]
        for architecture, seed in further[part - 1 :: parts]:
            work.distil_with(architecture, seed)
        if part == 1:
            work.wait_for(further)
            result[f"{speedup:g}x"] = judge(rows.read(), scale, speedup, shapes, found["minutes"])
    print(json.dumps(result))


def found_once(setting: Setting, scale: Scale, folder: Path, seed: int, waits: bool) -> dict[str, Any]:
    """The search's minutes and the contestants by speed-up; made by one process, for which others wait."""
    path = folder / "contestants.json"
    while waits and not path.is_file():
        time.sleep(10)
    if not path.is_file():
        winners, minutes = search(setting, scale, folder / "search", seed)
        shapes = {
            f"{speedup:g}x": [
                {"architecture": one.as_dict(), "origin": origin, "latency": vars(latency), "costs": costs}
                for one, (origin, latency, costs) in contestants(setting, scale, speedup, winner, seed).items()
            ]
            for speedup, winner in winners.items()
        }
        path.write_text(json.dumps({"minutes": minutes, "contestants": shapes}, indent=1))
    return json.loads(path.read_text())


@dataclass(frozen=True)
class Work:
    """The distillations for a budget, which several processes share.

    Attributes:
        setting: Teacher and texts.
        texts: Those to train on and those held out, with stored targets.
        scale: How large it is.
        speedup: The budget.
        rows: What was distilled.
        seed: That of the pilots, from which on all others count.
        probes: Tasks.
    """

    setting: Setting
    texts: Sequence[Any]
    scale: Scale
    speedup: float
    rows: Rows
    seed: int
    probes: Mapping[str, TaskProbe]

    def distil_with(self, architecture: Architecture, seed: int) -> None:
        """Distil with the learning rate that is better in a pilot, unless that was done before."""
        pilots = {}
        for rate in RATES:
            steps = int(PILOT * self.scale.steps)
            pilots[rate] = self._row(architecture, self.seed, rate, steps)["quality"]
        best = max(RATES, key=lambda rate: pilots[rate])
        row = self._row(architecture, seed, best, self.scale.steps)
        print(f"{architecture}, seed {seed}, rate {best:g}: {row['quality']:.4f}", flush=True)

    def _row(self, architecture: Architecture, seed: int, rate: float, steps: int) -> dict[str, Any]:
        key = {"shape": str(architecture), "speedup": self.speedup, "seed": seed, "rate": rate, "steps": steps}
        found = self.rows.find(**key)
        if found is None:
            found = distil(self.setting, self.texts, architecture, steps, rate, seed, self.probes)
            found = self.rows.add(**key, **found)
        return found

    def wait_for(self, wanted: Sequence[tuple[Architecture, int]]) -> dict[tuple[Architecture, int], dict[str, Any]]:
        """The rows of shapes and seeds, once all processes have done theirs."""
        of_this = {"speedup": self.speedup, "steps": self.scale.steps}
        while True:
            found = {one: self.rows.find(shape=str(one[0]), seed=one[1], **of_this) for one in wanted}
            if all(found.values()):
                return {one: row for one, row in found.items() if row is not None}
            time.sleep(10)


def judge(
    rows: Sequence[Mapping[str, Any]],
    scale: Scale,
    speedup: float,
    shapes: Mapping[Architecture, tuple[str, Latency, Mapping[str, float]]],
    minutes: float,
) -> dict[str, Any]:
    """Print the comparison for a budget."""
    done = [row for row in rows if row["steps"] == scale.steps and row["speedup"] == speedup]
    (winner, *_) = shapes
    # all that meets the budget is an alternative, also where the winner is faster than it had to be
    tolerance = max(TOLERANCE, shapes[winner][1].speedup / speedup * (1 + TOLERANCE) - 1)
    found = {}
    for measure in ("quality", *done[0]["scores"]):
        label = "R²" if measure == "quality" else measure
        every = compare(_confirmations(done, shapes, measure), tolerance, label=label)
        # random shapes have one seed: among these the winner has its first as well
        one_seed = compare(
            [replace(one, qualities=one.qualities[:1]) for one in _confirmations(done, shapes, measure)], tolerance
        )
        assert every is not None
        assert one_seed is not None
        found[measure] = replace(
            every, random_median=one_seed.random_median, random_percentile=one_seed.random_percentile
        )
    names = {str(one) for one, (origin, _, _) in shapes.items() if origin not in (SEARCH, RANDOM)}
    first = min(row["seed"] for row in done)  # the rate is chosen, and one seed of each is distilled
    rule_minutes = sum(row["seconds"] for row in rows if row["shape"] in names and row["seed"] <= first) / 60
    print(f"\n## {speedup:g}x, {done[0]['tokens']:,} tokens, {scale.seeds} seeds", flush=True)
    for measure, one in found.items():
        print(f"\n### {measure}\n\n{one.sentence}\n\n{comparison_table(one)}\n")
        for each in sorted(_confirmations(done, shapes, measure), key=lambda one: -one.quality):
            figures = f"{each.quality:.4f} ± {each.deviation:.4f}, {each.speedup:.2f}x, {len(each.qualities)} seed(s)"
            print(f"- {each.origin}: {each.architecture}, {figures}", flush=True)
    return {
        **_summary(found["quality"]),
        "scores": {task: _summary(one) for task, one in found.items() if task != "quality"},
        "search_minutes": round(minutes, 1),
        "rule_minutes": round(rule_minutes, 1),
    }


def _confirmations(
    rows: Sequence[Mapping[str, Any]],
    shapes: Mapping[Architecture, tuple[str, Latency, Mapping[str, float]]],
    measure: str,
) -> list[Confirmation]:
    found = []
    for one, (origin, latency, costs) in shapes.items():
        own = sorted((row for row in rows if row["shape"] == str(one)), key=lambda row: row["seed"])
        values = tuple(row["quality"] if measure == "quality" else row["scores"][measure] for row in own)
        found.append(Confirmation(architecture=one, origin=origin, qualities=values, latency=latency, costs=costs))
    return found


def _summary(found: Comparison) -> dict[str, Any]:
    return {
        "winner": round(found.winner.quality, 4),
        "best_rule": None if found.rule is None else round(found.rule.quality, 4),
        "half_width": None if found.half_width is None else round(found.half_width, 4),
        "verdict": found.verdict,
        "random_percentile": found.random_percentile,
    }


if __name__ == "__main__":
    main()
