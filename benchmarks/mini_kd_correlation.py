"""Does a mini-KD rank architectures as a distillation of ten times the tokens does? Spearman correlation of rewards.

    python benchmarks/mini_kd_correlation.py

Random architectures are distilled together from the same start for each budget of steps, and for ten times that budget.
Latency is measured once and goes into every reward, so that the correlation says what the shorter training does to it.
The correlation of R² alone, without latency, is printed as well, and that of two mini-KDs with different seeds: noise
allows no more. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import spearmanr

from distillation_setting import Setting, add_arguments, describe_machine, load_setting, training_arguments
from kdnas_hf import DistillationTrainer, LatencyBenchmark, SearchSpace, StudentPool, student_config
from kdnas_hf.latency import LatencyMeasurement, stand_in
from kdnas_hf.search import REWARDS
from kdnas_hf.students import KDNASConfig, KDNASModel


@dataclass
class Outcome:
    """What a distillation of all architectures came to.

    Attributes:
        r2: Last-layer R² of each on held-out text.
        reward: Its reward.
        minutes: Wall time.
    """

    r2: list[float]
    reward: list[float]
    minutes: float


def distil(
    setting: Setting,
    configs: Mapping[str, KDNASConfig],
    latency: Mapping[str, LatencyMeasurement],
    steps: int,
    seed: int,
) -> Outcome:
    """Distil all architectures in one pool."""
    with tempfile.TemporaryDirectory() as folder:
        training = training_arguments(folder, seed, {"max_steps": steps})
        started = time.monotonic()
        trainer = DistillationTrainer(
            model=StudentPool.create(configs, setting.teacher, training),
            teacher=setting.teacher,
            args=training,
            train_dataset=setting.train,
            eval_dataset=setting.heldout,
        )
        trainer.train()
        metrics = trainer.evaluate()
        minutes = (time.monotonic() - started) / 60
    reward = REWARDS["r2"]
    outcome = Outcome(
        [metrics[f"eval_{name}_r2"] for name in configs],
        [
            reward(metrics[f"eval_{name}_last_layer_loss"], latency[name].median_ms, latency["teacher"].median_ms)
            for name in configs
        ],
        minutes,
    )
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
    args = parser.parse_args()
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
        outcomes[steps] = distil(setting, configs, latency, steps, args.seed)
        print(f"{steps} steps: {outcomes[steps].minutes:.2f} minutes for all", flush=True)
    again = {steps: distil(setting, configs, latency, steps, args.seed + 1) for steps in args.steps}

    print("\n| architecture | latency | " + " | ".join(f"R² at {steps}" for steps in budgets) + " |")
    print("| --- | --- | " + " | ".join("---" for _ in budgets) + " |")
    for index, (name, architecture) in enumerate(zip(configs, chosen, strict=True)):
        print(
            f"| {architecture} | {latency[name].median_ms:.1f} ms | "
            + " | ".join(f"{outcomes[steps].r2[index]:.3f}" for steps in budgets)
            + " |"
        )
    print(
        f"\n| steps | minutes for all | Spearman with {args.times} times the steps: reward | R² alone | "
        "reward of two seeds |\n| --- | --- | --- | --- | --- |"
    )
    found = {}
    for steps in args.steps:
        mini, longer = outcomes[steps], outcomes[steps * args.times]
        by_reward = correlation(mini.reward, longer.reward)
        found[str(steps)] = round(by_reward, 3)
        print(
            f"| {steps} | {mini.minutes:.2f} | {by_reward:.3f} | {correlation(mini.r2, longer.r2):.3f} | "
            f"{correlation(mini.reward, again[steps].reward):.3f} |"
        )
    print(json.dumps({"spearman": found, "architectures": len(configs), "times": args.times}))


if __name__ == "__main__":
    main()
