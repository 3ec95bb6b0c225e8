"""Does a mini-KD rank architectures as a longer distillation does? Spearman correlation of the rewards.

    python benchmarks/mini_kd_correlation.py

Random architectures are distilled together from the same start for each budget of steps, and once for ten times the
largest budget that is a candidate for the preset. Latency is measured once and goes into every reward, so that the
correlation says what the shorter training does to it; the correlation of R² alone, without latency, is printed as well.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
import time

from scipy.stats import spearmanr

from distillation_setting import add_arguments, describe_machine, load_setting, training_arguments
from kdnas_hf import DistillationTrainer, LatencyBenchmark, SearchSpace, StudentPool, student_config
from kdnas_hf.latency import stand_in
from kdnas_hf.search import REWARDS
from kdnas_hf.students import KDNASModel


def main() -> None:
    """Distil the same architectures for several budgets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--space", default="quickstart", help="preset or file, as --space of recipes/search.py")
    parser.add_argument("--architectures", type=int, default=12)
    parser.add_argument(
        "--steps", type=int, nargs="+", default=(25, 50, 100), help="budgets of a mini-KD, in steps of 32"
    )
    parser.add_argument("--reference", type=int, default=1000, help="steps of the longer distillation")
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

    r2: dict[int, dict[str, float]] = {}
    rewards: dict[int, dict[str, float]] = {}
    minutes: dict[int, float] = {}
    reward = REWARDS["r2"]
    for steps in (*args.steps, args.reference):
        with tempfile.TemporaryDirectory() as folder:
            training = training_arguments(folder, args.seed, {"max_steps": steps})
            started = time.monotonic()
            trainer = DistillationTrainer(
                model=StudentPool.create(configs, teacher, training),
                teacher=teacher,
                args=training,
                train_dataset=setting.train,
                eval_dataset=setting.heldout,
            )
            trainer.train()
            metrics = trainer.evaluate()
            minutes[steps] = (time.monotonic() - started) / 60
        r2[steps] = {name: metrics[f"eval_{name}_r2"] for name in configs}
        rewards[steps] = {
            name: reward(metrics[f"eval_{name}_last_layer_loss"], latency[name].median_ms, latency["teacher"].median_ms)
            for name in configs
        }
        del trainer
        gc.collect()

    print("| architecture | latency | " + " | ".join(f"R² at {steps}" for steps in r2) + " |")
    print("| --- | --- | " + " | ".join("---" for _ in r2) + " |")
    for name, architecture in zip(configs, chosen, strict=True):
        print(
            f"| {architecture} | {latency[name].median_ms:.1f} ms | "
            + " | ".join(f"{values[name]:.3f}" for values in r2.values())
            + " |"
        )
    print(
        f"\n| steps | minutes for all | Spearman with {args.reference}: reward | R² alone |\n| --- | --- | --- | --- |"
    )
    found = {}
    for steps in r2:
        by_reward = spearmanr(list(rewards[steps].values()), list(rewards[args.reference].values())).statistic
        by_r2 = spearmanr(list(r2[steps].values()), list(r2[args.reference].values())).statistic
        found[str(steps)] = round(float(by_reward), 3)
        print(f"| {steps} | {minutes[steps]:.2f} | {by_reward:.3f} | {by_r2:.3f} |")
    print(json.dumps({"spearman": found, "architectures": len(configs), "reference_steps": args.reference}))


if __name__ == "__main__":
    main()
