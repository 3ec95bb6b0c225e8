"""Does a searched student beat the shapes that an engineer would pick by hand, at equal latency and training?

    python benchmarks/search_against_rules.py --preset short     # 2x and 4x at mini scale, on the embedded text
    python benchmarks/search_against_rules.py --preset full --dataset FILE [FILE …] --max_length 128 --threads 1 \
        --tasks wikiann intents --data_dir FOLDER
    python benchmarks/search_against_rules.py --preset full … --helper       # beside it, on other cores

A search runs as `recipes/search.py` does, one for each speed-up. Its winner, rules of thumb that fill what the speed-
up allows, and random members of the space within 3 % of that are then timed side by side and distilled alike: the same
texts in the same order from the same start, each with the better of two learning rates on a tenth of the training. All
are distilled with one seed, the winner and the best two rules with further ones. Of each student the R² on held-out
text is compared, and the scores of linear classifiers of ``--tasks`` on its states.
Rows are kept in ``--output_dir``; started again, it goes on. Printed is a table with the interval of a difference over
seeds, the cost of the search beside that of trying the rules, and as the last line one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

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
from kdnas_hf.search.controllers.rules_of_thumb import usual_shapes
from kdnas_hf.search.report import Comparison, compare, comparison_table
from kdnas_hf.search.result import RANDOM, SEARCH, Confirmation
from kdnas_hf.search.rules import TOLERANCE, random_architectures, rules_of_thumb
from kdnas_hf.utils.atomic_files import write_atomically

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


def search(
    setting: Setting, scale: Scale, speedup: float, folder: Path, seed: int, opponents: int = 0
) -> tuple[Architecture, float]:
    """The shape that a search finds for a speed-up, and the minutes that it took; a killed search is resumed."""
    found = ArchitectureSearch(
        teacher=setting.teacher,
        space=scale.search_space,
        train_dataset=setting.train,
        # a sample of all languages: the texts are in the order of their files
        proxy_dataset=setting.train.shuffle(seed=seed).select(range(scale.mini_kd)),
        heldout_dataset=setting.heldout,
        args=SearchArguments(
            num_episodes=scale.episodes,
            candidates_per_episode=5,
            mini_kd_epochs=1,
            reward_alpha=0,
            confirm_seeds=scale.confirm_seeds,
            compare=opponents,
            speedup=speedup,
        ),
        # the full distillation is ours: here it is one step
        training_args=training_arguments(
            folder, seed, {"learning_rate": 3e-3, "max_steps": 1, "save_strategy": "steps", "save_steps": 100}
        ),
    ).run()
    return found.students[0].architecture, (found.cost["total"] - found.cost.get("distillation", 0.0)) / 60


def rivals(setting: Setting, scale: Scale, speedup: float, seed: int) -> dict[Architecture, str]:
    """Rules of thumb that fill what a speed-up allows, and random shapes as fast, with their origin."""
    teacher, space = setting.teacher, scale.search_space
    # the usual shapes as well: a rule must not be left out because its latency was predicted from far away
    usual = usual_shapes(space, teacher_shape(teacher))
    design = list(dict.fromkeys([*usual, *random_architectures(space, _all_alike, 1.0, 24, seed)]))
    timed = _latencies(setting).measure(dict(enumerate(design)), repeats=15)
    predict = LatencyModel.fit({one: 1 / timed[i].speedup for i, one in enumerate(design)})
    found: dict[Architecture, str] = {}
    for name, one in rules_of_thumb(space, teacher_shape(teacher), predict, 1 / speedup, scale.rules).items():
        found.setdefault(one, name)
    drawn = random_architectures(space, predict, 1 / speedup, scale.random, seed, list(found))
    return found | dict.fromkeys(drawn, RANDOM)


def contestants(setting: Setting, winner: Architecture, shapes: Mapping[Architecture, str]) -> list[Confirmation]:
    """The winner and its rivals timed side by side, not yet distilled; one that is both is there twice."""
    latencies, numbers = _latencies(setting), {one: i for i, one in enumerate({winner: SEARCH} | dict(shapes))}
    measured = latencies.measure({i: one for one, i in numbers.items()}, repeats=45)
    costs = latencies.shape_costs(list(numbers))
    return [
        Confirmation(
            architecture=one,
            origin=origin,
            qualities=(),
            latency=measured[numbers[one]],
            costs={name: float(values[numbers[one]]) for name, values in costs.items()},
        )
        for one, origin in [(winner, SEARCH), *shapes.items()]
    ]


def _latencies(setting: Setting) -> ArchitectureLatencies:
    benchmark = SearchArguments(latency_repeats=45).latency_benchmark
    return ArchitectureLatencies(setting.teacher.model, lambda one: student_config(setting.teacher, one), benchmark)


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
    parser.add_argument(
        "--compare", type=int, default=0, help="rules of thumb that the search itself confirms beside its shapes"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/search_against_rules"))
    parser.add_argument("--helper", action="store_true", help="distil for another process, which searches and judges")
    args = parser.parse_args()
    scale = SCALES[args.preset]
    folder = args.output_dir / args.preset
    folder.mkdir(parents=True, exist_ok=True)
    setting = load_setting(args, sentences=scale.sentences, heldout=1000)
    probes = {}
    for task in args.tasks:
        folder_of_task = args.data_dir if Task.load(task).embedded is None else None
        probes[task] = TaskProbe.load(task, setting.teacher.tokenizer, args.max_length, folder_of_task)
    print(f"{describe_machine()}\n{scale}\n", flush=True)

    def chosen() -> dict[str, Any]:
        found = {speedup: rivals(setting, scale, speedup, args.seed) for speedup in scale.speedups}
        return {f"{speedup:g}": [(one.as_dict(), why) for one, why in some.items()] for speedup, some in found.items()}

    kept = once(folder / "rivals.json", args.helper, chosen)
    known = {speedup: {Architecture(**one): why for one, why in kept[f"{speedup:g}"]} for speedup in scale.speedups}
    training = training_arguments(folder, args.seed, {})
    depths = {one.num_hidden_layers for shapes in known.values() for one in shapes}
    required = required_by(training, setting.teacher, sorted(depths | set(scale.search_space.num_hidden_layers)))
    dtype = training.teacher_torch_dtype or torch.float32
    texts = [
        store_targets(setting.teacher, one, required, folder / "targets", dtype=dtype, batch_size=64)
        for one in (setting.train, setting.heldout)
    ]
    work = Work(setting, texts, scale, folder, args.seed, probes)
    if args.helper:  # while the other one searches
        for shapes in known.values():
            work.do([(one, args.seed + 1) for one in shapes])

    def timed() -> dict[str, Any]:
        found = {}
        for speedup, shapes in known.items():
            where = folder / f"search_{speedup:g}x"
            winner, minutes = search(setting, scale, speedup, where, args.seed, args.compare)
            alike = [one.to_dict() for one in contestants(setting, winner, shapes)]
            found[f"{speedup:g}"] = {"minutes": minutes, "contestants": alike}
        return found

    kept, result = once(folder / "contestants.json", args.helper, timed), {}
    for speedup in scale.speedups:
        found = kept[f"{speedup:g}"]
        alike = [Confirmation.from_dict(one) for one in found["contestants"]]
        first = work.do([(one.architecture, args.seed + 1) for one in alike])
        best = sorted((one for one in alike if one.is_rule), key=lambda one: -first[one.architecture]["quality"])
        seeds = range(args.seed + 2, args.seed + 1 + scale.seeds)
        for seed in seeds:
            work.do([(one.architecture, seed) for one in (alike[0], *best[:SEEDED_RULES])])
        if not args.helper:
            result[f"{speedup:g}x"] = judge(work.rows(), scale, speedup, alike, found["minutes"])
    print(json.dumps(result))


def once(path: Path, waits: bool, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is kept in a file, made if it is not there; one that ``waits`` leaves that to the other process."""
    while waits and not path.is_file():
        time.sleep(10)
    if not path.is_file():
        write_atomically(path, json.dumps(make(), indent=1))
    return json.loads(path.read_text())


@dataclass(frozen=True)
class Work:
    """Distillations, kept line by line in ``rows.jsonl``, which several processes of a machine share.

    Attributes:
        setting: Teacher and texts.
        texts: Those to train on and those held out, with stored targets.
        scale: How large the experiment is.
        folder: Where rows are kept.
        seed: That of the pilots, from which on all others count.
        probes: Tasks.
    """

    setting: Setting
    texts: Sequence[Any]
    scale: Scale
    folder: Path
    seed: int
    probes: Mapping[str, TaskProbe]

    def rows(self) -> list[dict[str, Any]]:
        """All rows."""
        path = self.folder / "rows.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def do(self, wanted: Sequence[tuple[Architecture, int]]) -> dict[Architecture, dict[str, Any]]:
        """Distil shapes with seeds; what another process is at is left to it, and waited for."""
        left = list(wanted)
        while left:
            for architecture, seed in list(left):
                name = hashlib.sha256(str(architecture).encode()).hexdigest()[:12]
                claim = FileLock(self.folder / f"{name}.lock")
                if self._row(architecture, seed) is not None:
                    left.remove((architecture, seed))
                    continue
                try:
                    with claim.acquire(blocking=False):
                        self._distil(architecture, seed)
                except Timeout:
                    continue
            if left and all(self._row(*one) is None for one in left):
                time.sleep(10)
        return {architecture: self._row(architecture, seed) or {} for architecture, seed in wanted}

    def _distil(self, architecture: Architecture, seed: int) -> None:
        """Distil with the learning rate that is better in a pilot, unless that was done before."""
        pilots = {}
        for rate in RATES:
            pilots[rate] = self._made(architecture, self.seed, rate, int(PILOT * self.scale.steps))["quality"]
        best = max(RATES, key=lambda rate: pilots[rate])
        row = self._made(architecture, seed, best, self.scale.steps)
        print(f"{architecture}, seed {seed}, rate {best:g}: {row['quality']:.4f}", flush=True)

    def _made(self, architecture: Architecture, seed: int, rate: float, steps: int) -> dict[str, Any]:
        row = self._row(architecture, seed, rate, steps)
        if row is None:
            found = distil(self.setting, self.texts, architecture, steps, rate, seed, self.probes)
            row = {"shape": str(architecture), "seed": seed, "rate": rate, "steps": steps, **found}
            with (self.folder / "rows.jsonl").open("a") as file:  # at once, so that processes do not mix theirs
                file.write(json.dumps(row) + "\n")
        return row

    def _row(
        self, architecture: Architecture, seed: int, rate: float | None = None, steps: int | None = None
    ) -> dict[str, Any] | None:
        wanted = {"shape": str(architecture), "seed": seed, "steps": steps or self.scale.steps}
        wanted |= {} if rate is None else {"rate": rate}
        return next((row for row in self.rows() if wanted.items() <= row.items()), None)


def judge(
    rows: Sequence[Mapping[str, Any]], scale: Scale, speedup: float, alike: Sequence[Confirmation], minutes: float
) -> dict[str, Any]:
    """Print the comparison for a budget."""
    shapes = {str(one.architecture) for one in alike}
    rows = [row for row in rows if row["shape"] in shapes]
    done = [row for row in rows if row["steps"] == scale.steps]
    # all that meets the budget is an alternative, also where the winner is faster than it had to be
    tolerance = max(TOLERANCE, alike[0].speedup / speedup * (1 + TOLERANCE) - 1)
    found = {}
    for measure in ("quality", *done[0]["scores"]):
        label = "R²" if measure == "quality" else measure
        every = compare(_with_scores(done, alike, measure), tolerance, label=label)
        # random shapes have one seed: among these the winner has its first as well
        firsts = [replace(one, qualities=one.qualities[:1]) for one in _with_scores(done, alike, measure)]
        one_seed = compare(firsts, tolerance)
        assert every is not None
        assert one_seed is not None
        found[measure] = replace(
            every, random_median=one_seed.random_median, random_percentile=one_seed.random_percentile
        )
    rules = {str(one.architecture) for one in alike if one.is_rule}
    first = min(row["seed"] for row in done)  # the rate is chosen, and one seed of each is distilled
    rule_minutes = sum(row["seconds"] for row in rows if row["shape"] in rules and row["seed"] <= first) / 60
    print(f"\n## {speedup:g}x, {done[0]['tokens']:,} tokens, {scale.seeds} seeds", flush=True)
    for measure, one in found.items():
        print(f"\n### {measure}\n\n{one.sentence}\n\n{comparison_table(one)}\n")
        for each in sorted(_with_scores(done, alike, measure), key=lambda one: -one.quality):
            figures = f"{each.quality:.4f} ± {each.deviation:.4f}, {each.speedup:.2f}x, {len(each.qualities)} seed(s)"
            print(f"- {each.origin}: {each.architecture}, {figures}", flush=True)
    return {
        **_summary(found["quality"]),
        "scores": {task: _summary(one) for task, one in found.items() if task != "quality"},
        "search_minutes": round(minutes, 1),
        "rule_minutes": round(rule_minutes, 1),
    }


def _with_scores(rows: Sequence[Mapping[str, Any]], alike: Sequence[Confirmation], measure: str) -> list[Confirmation]:
    """The contestants with what was measured of each, by seed."""
    found = []
    for one in alike:
        own = sorted((row for row in rows if row["shape"] == str(one.architecture)), key=lambda row: row["seed"])
        values = [row["quality"] if measure == "quality" else row["scores"][measure] for row in own]
        found.append(replace(one, qualities=tuple(values)))
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
