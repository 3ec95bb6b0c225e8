"""Race controllers on a table of measured architectures: how good is what each would recommend after 15 evaluations?

    python benchmarks/controllers.py --preset short     # default, random, lstm, depth and gp: under 5 minutes
    python benchmarks/controllers.py --preset full      # all of them, and more evaluations
    python benchmarks/controllers.py --objective pareto # how much of the front is found

Every controller searches the table (benchmarks/architecture_table.csv, made by architecture_table.py) with many seeds,
as it searches in `ArchitectureSearch`: in episodes, among what is fast enough, seeing what the episodes before showed.
The true reward of an architecture is what a Gaussian process makes of the whole table; an evaluation adds the noise
that was measured between seeds, and wide deep students fail. What is recommended has the highest posterior mean; its
true regret is by how much less than the best it earns, as a share. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from tqdm.auto import tqdm

from kdnas_hf import Architecture, SearchSpace
from kdnas_hf.latency import Latency
from kdnas_hf.search import REWARDS, EpsilonSchedule, Reward, SearchArguments, make_controller
from kdnas_hf.search.controllers import CONTROLLERS, PARETO_CONTROLLERS
from kdnas_hf.search.controllers.base import EPISODE, FAILURE, ArchitectureSampler, architecture_of, distributions
from kdnas_hf.search.controllers.bayesian import ArchitectureFeatures, GaussianProcess, posterior
from kdnas_hf.search.trial import COMPLETE, DIVERGED, Trial
from kdnas_hf.students.architecture import CHOICES

TABLE = Path(__file__).with_name("architecture_table.csv")
SPACE = Path(__file__).with_name("architecture_table.yaml")
REWARD = REWARDS["quality"]
TEACHER = Architecture(12, 12, 384, 1536, "gelu")  # multilingual-e5-small
SHORT = ("default", "random", "lstm", "depth", "gp")
EVALUATIONS = {"short": 15, "full": 30}


@dataclass(frozen=True)
class Measured:
    """What a search would see of an architecture.

    Attributes:
        reward: Its reward.
        quality: 1 - L of the reward.
        latency_ms: Its median latency, in milliseconds.
        speedup: How many times faster than the teacher it is.
    """

    reward: float
    quality: float
    latency_ms: float
    speedup: float


def read_seeds(path: Path) -> dict[Architecture, list[dict[str, str]]]:
    """The rows of a table by architecture, one for each seed of the mini-KD that it was measured with, in order."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["seed"]))
    found: dict[Architecture, list[dict[str, str]]] = {}
    for row in rows:
        numbers = {name: row[name] if name == "hidden_act" else int(row[name]) for name in CHOICES}
        found.setdefault(Architecture(**numbers), []).append(row)  # type: ignore[arg-type]
    return found


def read_rows(path: Path) -> dict[Architecture, dict[str, str]]:
    """The rows of a table by architecture, of the first seed of the mini-KD."""
    return {architecture: rows[0] for architecture, rows in read_seeds(path).items()}


def steps_of(row: Mapping[str, str]) -> list[int]:
    """The steps at which the learning curve was read."""
    return sorted(int(name.removeprefix("loss_")) for name in row if name.startswith("loss_"))


def read_table(path: Path, reward: Reward) -> dict[Architecture, Measured]:
    """What was measured of each architecture."""
    return {architecture: measured_of(row, reward) for architecture, row in read_rows(path).items()}


def measured_of(row: Mapping[str, str], reward: Reward) -> Measured:
    """What a row says."""
    quality = 1 - float(row[f"loss_{steps_of(row)[-1]}"])
    latency = Latency(float(row["latency_ms"]), float(row["latency_iqr_ms"]), float(row["teacher_latency_ms"]))
    return Measured(reward(quality, latency), quality, latency.student_ms, latency.speedup)


@dataclass(frozen=True)
class Landscape:
    """What is searched.

    Attributes:
        space: The search space.
        table: What was measured.
        truth: The true reward of each architecture: the table's, smoothed.
        noise: Standard deviation of a reward between seeds, without what a seed does to all architectures alike.
        speedup: How many times faster than the teacher a student must be.
    """

    space: SearchSpace
    table: Mapping[Architecture, Measured]
    truth: Mapping[Architecture, float]
    noise: float
    speedup: float

    @classmethod
    def read(cls, path: Path, space: SearchSpace, speedup: float) -> Landscape:
        """Read a table, and smooth it."""
        seeds = {one: [measured_of(row, REWARD).reward for row in rows] for one, rows in read_seeds(path).items()}
        features = ArchitectureFeatures(space)(list(seeds))
        process = GaussianProcess.fit(features, np.array([statistics.fmean(one) for one in seeds.values()]), seed=0)
        most = max(len(rewards) for rewards in seeds.values())
        repeated = np.array([rewards for rewards in seeds.values() if len(rewards) == most])
        rest = repeated - repeated.mean(1, keepdims=True) - repeated.mean(0, keepdims=True) + repeated.mean()
        noise = float(np.sqrt((rest**2).sum() / ((len(repeated) - 1) * (most - 1))))
        truth = dict(zip(seeds, process.predict(features)[0].tolist(), strict=True))
        return cls(space, read_table(path, REWARD), truth, noise, speedup)

    def admits(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """Which are fast enough, as is known before anything is trained: ``(architectures,)``."""
        return np.array([self.table[one].speedup >= self.speedup for one in architectures])

    @staticmethod
    def fails(architecture: Architecture) -> bool:
        """Whether its training diverges."""
        return architecture.hidden_size >= 384 and architecture.num_hidden_layers >= 4

    @property
    def best(self) -> float:
        """The best true reward."""
        able = [one for one in self.truth if self.admits([one])[0] and not self.fails(one)]
        return max(self.truth[one] for one in able)


def play(
    landscape: Landscape,
    sampler: ArchitectureSampler,
    evaluations: int,
    values_of: Callable[[Architecture], list[float]],
    directions: Sequence[Literal["maximize", "minimize"]] = ("maximize",),
) -> list[Trial]:
    """Search in episodes; the trials, fewer where the controller has no more to propose."""
    study = optuna.create_study(sampler=sampler, directions=directions)
    sampler.admits = landscape.admits
    found: list[Trial] = []
    while len(found) < evaluations:
        episode, asked = len(found) // sampler.candidates_per_episode, []
        for _ in range(sampler.candidates_per_episode):
            if sampler.available(study, len(study.get_trials(deepcopy=False))):
                trial = study.ask()
                trial.set_user_attr(EPISODE, episode)
                for name, distribution in distributions(landscape.space).items():
                    assert isinstance(distribution, CategoricalDistribution)
                    trial.suggest_categorical(name, distribution.choices)
                asked.append(trial)
        for trial in asked:
            architecture = architecture_of(study.get_trials(deepcopy=False)[trial.number])
            assert architecture is not None
            if landscape.fails(architecture):
                trial.set_user_attr(FAILURE, DIVERGED)
                study.tell(trial, state=TrialState.FAIL)
                found.append(Trial(trial.number, episode, architecture, state="failed", failure=DIVERGED))
            else:
                values = values_of(architecture)
                study.tell(trial, values)
                found.append(Trial(trial.number, episode, architecture, state=COMPLETE, reward=values[0]))
        if not asked:
            break
    return found


def regret(landscape: Landscape, trials: Sequence[Trial]) -> float:
    """By how much less than the best what is recommended truly earns, as a share of it."""
    means = {number: mean for number, (mean, _) in posterior(landscape.space, trials).items()}
    if not means:
        return 1.0
    number = max(means, key=means.__getitem__)
    return 1 - landscape.truth[trials[number].architecture] / landscape.best


def race(
    landscape: Landscape, names: Sequence[str], per_episode: int, seeds: int, evaluations: int
) -> dict[str, float]:
    """Race controllers; the mean regret of each, and the share of the default's candidates that failed."""
    counts = [count for count in (5, 10, 15, 20, 30) if count <= evaluations]
    print(
        "| controller | " + " | ".join(f"regret after {count}" for count in counts) + " | failed | seconds a search |"
    )
    print("| --- " * (len(counts) + 3) + "|")
    last: dict[str, float] = {}
    for name in names:
        kind, _, falls = name.partition(", epsilon falls by ")
        kind = SearchArguments().controller if kind == "default" else kind
        regrets, failed, seconds = [], [], []
        for seed in tqdm(range(seeds), desc=name, leave=False, disable=None):
            epsilon = EpsilonSchedule(1.0, float(falls)) if falls else None
            sampler = make_controller(kind, landscape.space, per_episode, seed=seed, epsilon=epsilon, teacher=TEACHER)
            random, started = np.random.default_rng(seed), time.perf_counter()

            def noisy(architecture: Architecture, random: np.random.Generator = random) -> list[float]:
                return [landscape.truth[architecture] + landscape.noise * random.standard_normal()]

            trials = play(landscape, sampler, evaluations, noisy)
            seconds.append(time.perf_counter() - started)
            regrets.append([regret(landscape, trials[:count]) for count in counts])
            failed.append(statistics.fmean(trial.failure is not None for trial in trials))
        means, errors = np.mean(regrets, axis=0), np.std(regrets, axis=0, ddof=1) / np.sqrt(seeds)
        last |= {"failing_share": round(statistics.fmean(failed), 3)} if name == "default" else {}
        last[name] = round(float(means[-1]), 5)
        cells = [f"{mean:.2%} ± {error:.2%}" for mean, error in zip(means, errors, strict=True)]
        print(
            f"| {name} | {' | '.join(cells)} | {statistics.fmean(failed):.0%} | {statistics.fmean(seconds):.1f} |",
            flush=True,
        )
    return last


def hypervolume(found: Sequence[Measured], slowest: float) -> float:
    """The area of quality and logarithm of latency that a front dominates, up to the slowest of the table."""
    ordered = sorted(found, key=lambda one: -one.speedup)
    edges = np.log([*(1 / one.speedup for one in ordered), slowest])
    quality = np.maximum.accumulate([max(one.quality, 0.0) for one in ordered])
    return float((np.diff(edges) * quality).sum())


def race_fronts(landscape: Landscape, per_episode: int, seeds: int, evaluations: int) -> dict[str, float]:
    """Race controllers for the Pareto front of the table, as measured; the median share of its hypervolume."""
    table = {one: value for one, value in landscape.table.items() if not landscape.fails(one)}
    slowest = 1 / min(one.speedup for one in landscape.table.values())
    whole = hypervolume([one for shape, one in table.items() if landscape.admits([shape])[0]], slowest)
    last = {}
    print("| controller | share of the front's hypervolume, median | quartiles |\n| --- | --- | --- |")
    for name in PARETO_CONTROLLERS:
        if name in ("gp", "hand"):
            continue
        shares = []
        for seed in tqdm(range(seeds), desc=name, leave=False, disable=None):
            sampler = make_controller(name, landscape.space, per_episode, seed=seed, teacher=TEACHER)
            trials = play(
                landscape,
                sampler,
                evaluations,
                lambda one: [table[one].quality, 1 / table[one].speedup],
                ("maximize", "minimize"),
            )
            found = [table[trial.architecture] for trial in trials if trial.is_complete]
            shares.append(hypervolume(found, slowest) / whole)
        low, median, high = quartiles(shares)
        last[name] = round(median, 4)
        print(f"| {name} | {median:.1%} | {low:.1%} to {high:.1%} |", flush=True)
    return last


def quartiles(values: Sequence[float]) -> list[float]:
    """First quartile, median and third quartile."""
    return [float(value) for value in np.percentile(values, (25, 50, 75))]


def main() -> None:
    """Race them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=tuple(EVALUATIONS), default="short")
    parser.add_argument("--objective", choices=("reward", "pareto"), default="reward")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--space", default=str(SPACE))
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--per_episode", type=int, default=5, help="candidates in an episode")
    parser.add_argument("--speedup", type=float, default=4.0, help="hard constraint, as --speedup of a search")
    parser.add_argument("--only", nargs="+", default=None, help="names of the controllers to race")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    landscape = Landscape.read(args.table, SearchSpace.load(args.space), args.speedup)
    able = [one for one in landscape.truth if landscape.admits([one])[0]]
    rewards = [landscape.truth[one] for one in able if not landscape.fails(one)]
    print(
        f"{len(landscape.truth)} architectures, {len(able)} of them at least {args.speedup:g}x as fast as the teacher; "
        f"{len(able) - len(rewards)} of these fail. True rewards: best {max(rewards):.4f}, median "
        f"{statistics.median(rewards):.4f}; noise {landscape.noise:.4f}. {args.seeds} seeds, mean, standard error.\n",
        flush=True,
    )
    evaluations = EVALUATIONS[args.preset]
    if args.objective == "pareto":
        print(json.dumps(race_fronts(landscape, args.per_episode, args.seeds, evaluations)))
        return
    others = [name for name in CONTROLLERS if name not in ("hand", SearchArguments().controller)]
    everything = ["default", "lstm, epsilon falls by 0.4", *others]
    names = args.only or (SHORT if args.preset == "short" else everything)
    print(json.dumps(race(landscape, names, args.per_episode, args.seeds, evaluations)))


if __name__ == "__main__":
    main()
