"""Does a mini-KD rank architectures as a distillation of ten times the tokens does? Spearman correlation of rewards.

    python benchmarks/mini_kd_correlation.py

Random architectures are distilled together from the same start for each budget of steps, and for ten times that budget.
Latency is measured once and goes into every reward, so that the correlation says what the shorter training does to it.
The mini-KD's reward is that of a search: its loss is extrapolated to the longer training. Printed beside it are the
reward of the loss as measured, the losses alone (without latency), the correlation of two mini-KDs with different
seeds, which is what noise allows, and what is lost by the architecture that the mini-KD finds best: how much lower its
reward after the longer training is than the best one's. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy.stats import spearmanr
from transformers import TrainerCallback

from distillation_setting import (
    Setting,
    add_arguments,
    describe_machine,
    load_setting,
    make_trainer,
    training_arguments,
)
from kdnas_hf import LatencyBenchmark, SearchSpace, student_config
from kdnas_hf.latency import LatencyMeasurement, stand_in
from kdnas_hf.search import REWARDS, Reward
from kdnas_hf.search.reward import earlier_step
from kdnas_hf.students import KDNASConfig, KDNASModel


@dataclass
class Outcome:
    """What a distillation of all architectures came to.

    Attributes:
        r2: Last-layer R² of each on held-out text.
        loss: L of each on held-out text.
        promised: L that its learning curve promises.
        reward: Its reward, of the loss as it was measured.
        extrapolated: Its reward, of the loss that its learning curve promises.
        minutes: Wall time, with evaluations.
    """

    r2: list[float]
    loss: list[float]
    promised: list[float]
    reward: list[float]
    extrapolated: list[float]
    minutes: float


class EvaluateEarlier(TrainerCallback):
    """Asks for the evaluation from which the learning curve is extrapolated."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        control.should_evaluate = state.global_step == earlier_step(state.max_steps)


def distil(
    setting: Setting,
    configs: Mapping[str, KDNASConfig],
    latency: Mapping[str, LatencyMeasurement],
    steps: int,
    seed: int,
    reward: Reward,
) -> Outcome:
    """Distil all architectures in one pool."""
    with tempfile.TemporaryDirectory() as folder:
        training = training_arguments(folder, seed, {"max_steps": steps})
        started = time.monotonic()
        trainer = make_trainer(setting, configs, training, callbacks=[EvaluateEarlier()])
        trainer.train()
        metrics = trainer.evaluate()
        minutes = (time.monotonic() - started) / 60
    earlier = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    outcome = Outcome([], [], [], [], [], minutes)
    for name in configs:
        key = f"eval_{name}_last_layer_loss"
        latencies = latency[name].median_ms, latency["teacher"].median_ms
        promised = reward.extrapolate(earlier[key], metrics[key], int(earlier["step"]), steps)
        outcome.r2.append(metrics[f"eval_{name}_r2"])
        outcome.loss.append(metrics[key])
        outcome.promised.append(promised)
        outcome.reward.append(reward(metrics[key], *latencies))
        outcome.extrapolated.append(reward(promised, *latencies))
    del trainer
    gc.collect()
    return outcome


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation."""
    return float(spearmanr(first, second).statistic)


def main() -> None:
    """Distil the same architectures for several budgets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--space", default="quickstart", help="preset or file, as --space of recipes/search.py")
    parser.add_argument("--architectures", type=int, default=12)
    parser.add_argument(
        "--steps", type=int, nargs="+", default=(25, 50, 100), help="budgets of a mini-KD, in steps of 32 texts"
    )
    parser.add_argument("--times", type=int, default=10, help="how many times longer the longer distillation is")
    parser.add_argument("--reward_alpha", type=float, default=REWARDS["r2"].alpha)
    args = parser.parse_args()
    reward = replace(REWARDS["r2"], alpha=args.reward_alpha, horizon=args.times)
    setting = load_setting(args, sentences=24000, heldout=1000)
    teacher = setting.teacher
    space = list(SearchSpace.load(args.space))
    chosen = random.Random(args.seed).sample(space, args.architectures)
    configs = {f"a{i}": student_config(teacher, architecture) for i, architecture in enumerate(chosen)}
    print(f"{describe_machine()}\n{args.architectures} architectures of {args.space}, seed {args.seed}\n", flush=True)

    models = {name: stand_in(KDNASModel, config) for name, config in configs.items()}
    models["teacher"] = stand_in(type(teacher.model), teacher.model.config)
    latency = LatencyBenchmark(batch_size=1, sequence_length=128, threads=1, repeats=25).measure(models).measurements
    del models

    budgets = sorted({steps * times for steps in args.steps for times in (1, args.times)})
    outcomes = {}
    for steps in budgets:
        outcomes[steps] = distil(setting, configs, latency, steps, args.seed, reward)
        print(f"{steps} steps: {outcomes[steps].minutes:.2f} minutes for all", flush=True)
    again = {steps: distil(setting, configs, latency, steps, args.seed + 1, reward) for steps in args.steps}

    print("\n| architecture | latency | " + " | ".join(f"R² at {steps}" for steps in budgets) + " |")
    print("| --- | --- | " + " | ".join("---" for _ in budgets) + " |")
    for index, (name, architecture) in enumerate(zip(configs, chosen, strict=True)):
        print(
            f"| {architecture} | {latency[name].median_ms:.1f} ms | "
            + " | ".join(f"{outcomes[steps].r2[index]:.3f}" for steps in budgets)
            + " |"
        )
    print(
        f"\n| steps | minutes for all | Spearman with {args.times} times the steps: loss | loss as measured | reward | "
        "reward of the loss as measured | reward of two seeds | lost by taking the mini-KD's best |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    found = {}
    for steps in args.steps:
        mini, longer = outcomes[steps], outcomes[steps * args.times]
        by_reward = correlation(mini.extrapolated, longer.reward)
        by_loss, by_measured = correlation(mini.promised, longer.loss), correlation(mini.loss, longer.loss)
        by_seed = correlation(mini.extrapolated, again[steps].extrapolated)
        found[str(steps)] = round(by_reward, 3)
        best = mini.extrapolated.index(max(mini.extrapolated))
        print(
            f"| {steps} | {mini.minutes:.2f} | {by_loss:.3f} | {by_measured:.3f} | {by_reward:.3f} | "
            f"{correlation(mini.reward, longer.reward):.3f} | {by_seed:.3f} | "
            f"{1 - longer.reward[best] / max(longer.reward):.1%} |"
        )
    print(json.dumps({"spearman": found, "architectures": len(configs), "times": args.times}))


if __name__ == "__main__":
    main()
