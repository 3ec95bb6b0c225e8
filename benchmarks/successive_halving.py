"""What successive halving saves and costs: searches replayed on the table of measured architectures.

    python benchmarks/successive_halving.py

How many of an episode's candidates train on, and after which share of a mini-KD's steps, is a rule. Every search is
replayed with each rule, over many seeds, among the shapes that are fast enough: rewards at the rungs are of R² as it
was measured there (benchmarks/architecture_table.csv). Printed are the share of training tokens that the stopped
candidates saved, and the reward of the architecture that the search would recommend. The last line is one JSON object:
of each rule what it saves, and by how much less what it recommends earns in the mean and in the median, as shares.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from tqdm.auto import tqdm

from controllers import SPACE, TABLE, quartiles, read_rows, steps_of
from kdnas_hf import Architecture, SearchSpace
from kdnas_hf.export import Budget
from kdnas_hf.latency import Latency
from kdnas_hf.search import REWARDS, Reward, SearchArguments, SuccessiveHalving, make_controller
from kdnas_hf.search.controllers.base import EPISODE, REWARD, architecture_of, distributions

RULES = {
    "all": None,
    "0.5 at 1/4": SuccessiveHalving((0.25,), 0.5),
    "0.4 at 1/4": SuccessiveHalving((0.25,), 0.4),
    "0.3 at 1/4": SuccessiveHalving((0.25,), 0.3),
    "0.6 at 1/4 and 1/2": SuccessiveHalving((0.25, 0.5), 0.6),
    "0.5 at 1/4 and 1/2": SuccessiveHalving((0.25, 0.5), 0.5),
    "0.5 at 1/2": SuccessiveHalving((0.5,), 0.5),
    "0.2 at 1/2": SuccessiveHalving((0.5,), 0.2),
}


@dataclass(frozen=True)
class Curve:
    """An architecture along its mini-KD.

    Attributes:
        rewards: By step, of the quality as it was measured then.
        tokens: Of the whole mini-KD.
        latency: Beside the teacher's.
    """

    rewards: dict[int, float]
    tokens: int
    latency: Latency


def read_curves(path: Path, reward: Reward, budget: Budget) -> dict[Architecture, Curve]:
    """Learning curves of the architectures that meet a budget."""
    curves = {}
    for architecture, row in read_rows(path).items():
        latency = Latency(*(float(row[name]) for name in ("latency_ms", "latency_iqr_ms", "teacher_latency_ms")))
        if budget.met_by({"latency_ms": latency.student_ms, "speedup": latency.speedup}):
            rewards = {step: reward(float(row[f"r2_{step}"]), latency) for step in steps_of(row)}
            curves[architecture] = Curve(rewards, int(row["tokens"]), latency)
    return curves


def replay(
    space: SearchSpace,
    curves: Mapping[Architecture, Curve],
    controller: str,
    episodes: int,
    per_episode: int,
    rule: SuccessiveHalving | None,
    seed: int,
) -> tuple[float, float]:
    """Reward of the best that trained to the end, and the share of tokens that was spent."""
    sampler = make_controller(controller, space, per_episode, seed=seed)
    sampler.admits = lambda architectures: np.array([one in curves for one in architectures], dtype=bool)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    best, spent, whole = 0.0, 0.0, 0
    for episode in range(episodes):
        trials = {str(i): study.ask() for i in range(per_episode)}
        chosen = {}
        for name, trial in trials.items():
            trial.set_user_attr(EPISODE, episode)
            for choice, distribution in distributions(space).items():
                assert isinstance(distribution, CategoricalDistribution)
                trial.suggest_categorical(choice, distribution.choices)
            architecture = architecture_of(study.get_trials(deepcopy=False)[trial.number])
            assert architecture is not None
            chosen[name] = curves[architecture]
        last = max(next(iter(chosen.values())).rewards)
        stopped: dict[str, int] = {}
        for step in rule.steps(last) if rule is not None else []:
            training = {name: curve.rewards[step] for name, curve in chosen.items() if name not in stopped}
            stopped |= dict.fromkeys(rule.stopped(training) if rule is not None else (), step)
        for name, curve in chosen.items():
            step = stopped.get(name, last)
            trials[name].report(0.0, step)
            if name in stopped:
                trials[name].set_user_attr(REWARD, curve.rewards[step])
                study.tell(trials[name], state=TrialState.PRUNED)
            else:
                study.tell(trials[name], curve.rewards[last])
                best = max(best, curve.rewards[last])
            spent += curve.tokens * step / last
            whole += curve.tokens
    return best, spent / whole


def main() -> None:
    """Replay all rules."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--space", default=str(SPACE))
    parser.add_argument("--controller", default=SearchArguments().controller)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--speedup", type=float, default=4.0, help="hard constraint, as --speedup of a search")
    parser.add_argument("--episodes", type=int, default=6)
    parser.add_argument("--per_episode", type=int, default=5)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    budget, space = Budget(args.speedup), SearchSpace.load(args.space)
    curves = read_curves(args.table, REWARDS["quality"], budget)
    highest = max(curve.rewards[max(curve.rewards)] for curve in curves.values())
    print(
        f"{len(curves)} architectures {budget}, best reward {highest:.4f}; {args.controller}, "
        f"{args.episodes} episodes of {args.per_episode}, {args.seeds} seeds\n\n"
        "| keep | tokens saved | best reward, median | quartiles | mean | median less than of all |\n"
        "| --- | --- | --- | --- | --- | --- |",
        flush=True,
    )
    found, of_all = {}, (0.0, 0.0)
    for name, rule in RULES.items():
        runs = [
            replay(space, curves, args.controller, args.episodes, args.per_episode, rule, seed)
            for seed in tqdm(range(args.seeds), desc=name, leave=False, disable=None)
        ]
        low, median, high = quartiles([best for best, _ in runs])
        mean = statistics.fmean(best for best, _ in runs)
        of_all = (mean, median) if rule is None else of_all
        saved = 1 - statistics.fmean(spent for _, spent in runs)
        less = [round(1 - one / whole, 4) for one, whole in zip((mean, median), of_all, strict=True)]
        found[name] = {"saved": round(saved, 3), "lost": less[0], "lost_in_median": less[1]}
        print(
            f"| {name} | {saved:.0%} | {median:.4f} | {low:.4f} to {high:.4f} | {mean:.4f} | {less[1]:.2%} |",
            flush=True,
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
