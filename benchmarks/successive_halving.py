"""What successive halving saves and costs: searches replayed on the table of measured architectures.

    python benchmarks/successive_halving.py

How many of an episode's candidates train on, and after which share of a mini-KD's steps, is a rule. Every search is
replayed with each rule, over many seeds: rewards at the rungs are from the learning curves of the table
(benchmarks/architecture_table.csv). Printed are the share of training tokens that the stopped candidates saved, and the
reward of the architecture that the search would recommend. The last line is one JSON object: of each rule.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import TrialState
from tqdm.auto import tqdm

from controllers import SPACE, TABLE, promised_loss, quartiles, read_rows, steps_of
from kdnas_hf import Architecture, SearchSpace
from kdnas_hf.search import REWARDS, LatencyBudget, Reward, SearchArguments, make_controller
from kdnas_hf.search.controllers import REWARD, architecture_of
from kdnas_hf.search.halving import SuccessiveHalving

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
    """An architecture's rewards along its mini-KD.

    Attributes:
        rewards: By step, of the loss extrapolated from what was read until then.
        tokens: Of the whole mini-KD.
        latency_ms: Median latency, in milliseconds.
        speedup: How many times faster than the teacher it is.
    """

    rewards: dict[int, float]
    tokens: int
    latency_ms: float
    speedup: float


def read_curves(path: Path, reward: Reward) -> dict[Architecture, Curve]:
    """Learning curves by architecture."""
    curves = {}
    for architecture, row in read_rows(path).items():
        latency, teacher = float(row["latency_ms"]), float(row["teacher_latency_ms"])
        steps = steps_of(row)
        rewards = {step: reward(promised_loss(row, step, steps[-1], reward), latency, teacher) for step in steps}
        curves[architecture] = Curve(rewards, int(row["tokens"]), latency, teacher / latency)
    return curves


def replay(
    space: SearchSpace,
    curves: Mapping[Architecture, Curve],
    controller: str,
    episodes: int,
    per_episode: int,
    rule: SuccessiveHalving | None,
    budget: LatencyBudget,
    seed: int,
) -> tuple[float, float]:
    """Reward of the best that trained to the end, and the share of tokens that was spent."""
    sampler = make_controller(controller, space, per_episode, seed=seed)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    best, spent, whole = 0.0, 0.0, 0
    for _ in range(episodes):
        trials = {str(i): study.ask() for i in range(per_episode)}
        chosen = {}
        for name, trial in trials.items():
            for choice, values in space.choices.items():
                trial.suggest_categorical(choice, values)
            architecture = architecture_of(study.get_trials(deepcopy=False)[trial.number])
            assert architecture is not None
            chosen[name] = curves[architecture]
        last = max(next(iter(chosen.values())).rewards)
        stopped: dict[str, int] = {}
        for step in rule.steps(last) if rule is not None else []:
            training = {
                name: curve.rewards[step] if budget.met_by(curve) else -curve.latency_ms
                for name, curve in chosen.items()
                if name not in stopped
            }
            stopped |= dict.fromkeys(rule.stopped(training) if rule is not None else (), step)
        for name, curve in chosen.items():
            step = stopped.get(name, last)
            trials[name].report(0.0, step)
            for limit, excess in budget.excess(curve).items():
                trials[name].set_constraint(limit, excess)
            if name in stopped:
                trials[name].set_user_attr(REWARD, curve.rewards[step])
                study.tell(trials[name], state=TrialState.PRUNED)
            else:
                study.tell(trials[name], curve.rewards[step])
            spent += curve.tokens * step / last
            whole += curve.tokens
            if name not in stopped and budget.met_by(curve):
                best = max(best, curve.rewards[last])
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
    curves = read_curves(args.table, REWARDS["r2"])
    space = SearchSpace.load(args.space)
    budget = LatencyBudget(args.speedup)
    highest = max(curve.rewards[max(curve.rewards)] for curve in curves.values() if budget.met_by(curve))
    print(
        f"{len(curves)} architectures, best reward {highest:.4f} of those {budget}; {args.controller}, "
        f"{args.episodes} episodes of {args.per_episode}, {args.seeds} seeds\n\n"
        "| keep | tokens saved | best reward, median | quartiles | mean | median less than of all |\n"
        "| --- | --- | --- | --- | --- | --- |",
        flush=True,
    )
    found, without = {}, 0.0
    for name, rule in RULES.items():
        runs = [
            replay(space, curves, args.controller, args.episodes, args.per_episode, rule, budget, seed)
            for seed in tqdm(range(args.seeds), desc=name, leave=False, disable=None)
        ]
        low, median, high = quartiles([best for best, _ in runs])
        without = without or median
        saved = 1 - statistics.fmean(spent for _, spent in runs)
        found[name] = {"saved": round(saved, 3), "lost": round(1 - median / without, 4)}
        print(
            f"| {name} | {saved:.0%} | {median:.4f} | {low:.4f} to {high:.4f} | "
            f"{statistics.fmean(best for best, _ in runs):.4f} | {1 - median / without:.2%} |",
            flush=True,
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
