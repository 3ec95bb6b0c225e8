"""Race controllers on a table of measured architectures: how many evaluations until one within 1 % of the best reward?

    python benchmarks/controllers.py --preset short     # the default, the published LSTM and random: under 5 minutes
    python benchmarks/controllers.py --preset full      # all of them, and regret against evaluations
    python benchmarks/controllers.py --objective pareto # how much of the front is found

Every controller searches the table (benchmarks/architecture_table.csv, made by architecture_table.py) with many seeds,
as it searches in `ArchitectureSearch`: in episodes, seeing the rewards of the episodes before. An evaluation is a
look-up, so that only the controllers differ. The last line is one JSON object: the median number of evaluations.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from tqdm.auto import tqdm

from kdnas_hf import Architecture, SearchSpace
from kdnas_hf.search import (
    REWARDS,
    EpsilonSchedule,
    LatencyBudget,
    LatencyModel,
    Reward,
    SearchArguments,
    make_controller,
)
from kdnas_hf.search.controllers import PARETO_CONTROLLERS, ArchitectureSampler, architecture_of
from kdnas_hf.search.reward import earlier_step
from kdnas_hf.search.space import CHOICES

TABLE = Path(__file__).with_name("architecture_table.csv")
SPACE = Path(__file__).with_name("architecture_table.yaml")
SHORT = ("default", "lstm", "random")
CURVE = (5, 10, 15, 20, 30, 40, 60)  # evaluations at which regret is printed


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


@dataclass(frozen=True)
class Contestant:
    """A controller with its settings.

    Attributes:
        controller: Its name in `kdnas_hf.search.CONTROLLERS`.
        per_episode: Candidates in an episode.
        epsilon: Of the LSTM.
    """

    controller: str
    per_episode: int
    epsilon: EpsilonSchedule | None = None


def contestants(per_episode: int) -> dict[str, Contestant]:
    """Everything that can be raced, by name."""
    return {
        "bayesian": Contestant("bayesian", per_episode),
        "default": Contestant(SearchArguments().controller, per_episode),
        "lstm": Contestant("lstm", per_episode),  # published: epsilon falls from 1 by 0.05 an episode
        "lstm, 20 in an episode": Contestant("lstm", 20),  # as published in this too
        "lstm, epsilon falls by 0.4": Contestant("lstm", per_episode, EpsilonSchedule(1.0, 0.4)),
        "tpe": Contestant("tpe", per_episode),
        "gp": Contestant("gp", per_episode),
        "nsga2": Contestant("nsga2", per_episode),
        "random": Contestant("random", per_episode),
    }


def promised_loss(row: Mapping[str, str], step: int, max_steps: int, reward: Reward) -> float:
    """L of the reward as it looked after a step of the mini-KD; as measured where the curve was not read before it."""
    loss, earlier = float(row[f"loss_{step}"]), earlier_step(step)
    if f"loss_{earlier}" not in row:
        return loss
    return reward.extrapolate(float(row[f"loss_{earlier}"]), loss, earlier, step, max_steps)


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
    steps = steps_of(row)
    loss = promised_loss(row, steps[-1], steps[-1], reward)
    latency, teacher = float(row["latency_ms"]), float(row["teacher_latency_ms"])
    return Measured(reward(loss, latency, teacher), 1 - loss, latency, teacher / latency)


def describe_noise(path: Path, reward: Reward) -> str:
    """How much rewards vary between seeds, and how well latencies are regressed, in one sentence."""
    seeds = [[measured_of(row, reward).reward for row in rows] for rows in read_seeds(path).values() if len(rows) > 1]
    noise = statistics.fmean(statistics.stdev(values) / statistics.fmean(values) for values in seeds)
    latencies = {architecture: one.latency_ms for architecture, one in read_table(path, reward).items()}
    return (
        f"rewards of {len(seeds)} architectures vary between seeds by {noise:.1%} (standard deviation over mean); a "
        f"regression of latency is off by {LatencyModel.fit(latencies).error:.1%} in the median"
    )


def race(
    space: SearchSpace,
    table: Mapping[Architecture, Measured],
    sampler: ArchitectureSampler,
    budget: LatencyBudget,
    enough: float,
) -> list[float]:
    """The rewards that a controller finds, in order, until one is enough; 0 for what misses the budget."""
    study = optuna.create_study(sampler=sampler, direction="maximize")
    found: list[float] = []
    while len(found) < len(table):
        trials = [study.ask() for _ in range(min(sampler.candidates_per_episode, len(table) - len(found)))]
        for trial in trials:
            for name, values in space.choices.items():
                trial.suggest_categorical(name, values)
        for trial in trials:
            architecture = architecture_of(study.get_trials(deepcopy=False)[trial.number])
            assert architecture is not None
            measured = table[architecture]
            for name, excess in budget.excess(measured).items():
                trial.set_constraint(name, excess)
            study.tell(trial, measured.reward)
            found.append(measured.reward if budget.met_by(measured) else 0.0)
            if found[-1] >= enough:
                return found
    return found


def race_front(
    space: SearchSpace, table: Mapping[Architecture, Measured], sampler: ArchitectureSampler, evaluations: int
) -> list[float]:
    """The hypervolume of the front after each evaluation of a search for it."""
    study = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])
    found: list[Measured] = []
    volumes = []
    while len(found) < evaluations:
        trials = [study.ask() for _ in range(sampler.candidates_per_episode)]
        for trial in trials:
            for name, values in space.choices.items():
                trial.suggest_categorical(name, values)
        for trial in trials:
            architecture = architecture_of(study.get_trials(deepcopy=False)[trial.number])
            assert architecture is not None
            found.append(table[architecture])
            study.tell(trial, [found[-1].quality, 1 / found[-1].speedup])
            volumes.append(hypervolume(found, slowest=1 / min(one.speedup for one in table.values())))
    return volumes


def hypervolume(found: Sequence[Measured], slowest: float) -> float:
    """The area of quality and logarithm of latency that a front dominates, up to the slowest of the table."""
    ordered = sorted(found, key=lambda one: -one.speedup)
    edges = np.log([*(1 / one.speedup for one in ordered), slowest])
    quality = np.maximum.accumulate([max(one.quality, 0.0) for one in ordered])
    return float((np.diff(edges) * quality).sum())


def print_fronts(space: SearchSpace, table: Mapping[Architecture, Measured], per_episode: int, seeds: int) -> None:
    """Race controllers for the Pareto front."""
    whole = hypervolume(list(table.values()), slowest=1 / min(one.speedup for one in table.values()))
    counts = [count for count in CURVE if count % per_episode == 0]
    print(f"{len(table)} architectures; share of the hypervolume of their front, median of {seeds} seeds\n")
    print(
        "| controller | "
        + " | ".join(f"after {count}" for count in counts)
        + " |\n"
        + "| --- " * (len(counts) + 1)
        + "|"
    )
    last = {}
    for name in PARETO_CONTROLLERS:
        volumes = []
        for seed in tqdm(range(seeds), desc=name, leave=False, disable=None):
            sampler = make_controller(name, space, per_episode, seed=seed)
            volumes.append(race_front(space, table, sampler, counts[-1]))
        shares = np.median(volumes, axis=0) / whole
        last[name] = [round(float(shares[count - 1]), 4) for count in counts]
        print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in last[name]) + " |", flush=True)
    print(json.dumps(last))


def quartiles(values: Sequence[float]) -> list[float]:
    """First quartile, median and third quartile."""
    return [float(value) for value in np.percentile(values, (25, 50, 75))]


def main() -> None:
    """Race them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=("short", "full"), default="short")
    parser.add_argument("--objective", choices=("reward", "pareto"), default="reward")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--space", default=str(SPACE))
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--per_episode", type=int, default=5, help="candidates in an episode")
    parser.add_argument("--within", type=float, default=0.01, help="share of the best reward that may be missing")
    parser.add_argument("--speedup", type=float, default=4.0, help="hard constraint, as --speedup of a search")
    parser.add_argument("--only", nargs="+", default=None, help="names of the controllers to race")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    table = read_table(args.table, REWARDS["r2"])
    space = SearchSpace.load(args.space)
    if args.objective == "pareto":
        print_fronts(space, table, args.per_episode, args.seeds)
        return
    budget = LatencyBudget(args.speedup)
    rewards = [measured.reward for measured in table.values() if budget.met_by(measured)]
    best = max(rewards)
    target = best * (1 - args.within)
    good = sum(reward >= target for reward in rewards)
    print(
        f"{len(table)} architectures, {len(rewards)} of them {budget}; of these: best reward {best:.4f}, median "
        f"{statistics.median(rewards):.4f}, {good} within {args.within:.0%} of the best; {args.seeds} seeds;\n"
        f"{describe_noise(args.table, REWARDS['r2'])}\n",
        flush=True,
    )
    names = args.only or (SHORT if args.preset == "short" else list(contestants(args.per_episode)))
    curve = args.preset == "full"
    header = ["controller", "evaluations to within", "quartiles", "seconds a search"]
    header += [f"regret after {count}" for count in CURVE] if curve else []
    print("| " + " | ".join(header) + " |\n" + "| --- " * len(header) + "|")
    print(f"| oracle | 1 | 1 to 1 | 0 |{' 0.0 % |' * len(CURVE) if curve else ''}", flush=True)
    medians = {}
    for name in names:
        one = contestants(args.per_episode)[name]
        needed, regrets, seconds = [], [], []
        for seed in tqdm(range(args.seeds), desc=name, leave=False, disable=None):
            sampler = make_controller(one.controller, space, one.per_episode, seed=seed, epsilon=one.epsilon)
            started = time.perf_counter()
            found = race(space, table, sampler, budget, target)
            seconds.append(time.perf_counter() - started)
            needed.append(len(found))
            so_far = np.maximum.accumulate(found + [found[-1]] * max(CURVE[-1] - len(found), 0))
            regrets.append([1 - so_far[count - 1] / best for count in CURVE])
        low, median, high = quartiles(needed)
        medians[name] = median
        row = [name, f"{median:g}", f"{low:g} to {high:g}", f"{statistics.median(seconds):.1f}"]
        row += [f"{value:.1%}" for value in np.median(regrets, axis=0)] if curve else []
        print("| " + " | ".join(row) + " |", flush=True)
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
