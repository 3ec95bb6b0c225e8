"""How long should a mini-KD be? Ranks after several lengths against those of a much longer training, per second.

    python benchmarks/mini_kd_correlation.py --threads 1

Random architectures that meet a speed-up are distilled together from the same start for each length, and for a longer
training; a schedule of its own ends each length. Latency is measured once and goes into every reward. For each length
it is said how well qualities and rewards rank as they do after the longer training (Spearman), how well with another
seed, which is what noise allows, and what counts for a search of a given time: with the shapes that this length can
measure in it, how much lower than the best of all is the true quality of the one that looks best, on average over
random draws of candidates. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from distillation_setting import (
    Setting,
    add_arguments,
    describe_machine,
    load_setting,
    make_trainer,
    training_arguments,
)
from kdnas_hf import Architecture, LatencyBenchmark, SearchSpace, student_config
from kdnas_hf.distillation.pool import required_by
from kdnas_hf.distillation.stored_targets import StoredTargets, store_targets
from kdnas_hf.latency import Latency, stand_in
from kdnas_hf.search import REWARDS
from kdnas_hf.students import KDNASConfig, KDNASModel

DRAWS = 2000
CANDIDATES = 15  # of the search whose time is given to each length: so many mini-KDs of REFERENCE steps
REFERENCE = 100


def fast_enough(setting: Setting, space: SearchSpace, count: int, speedup: float) -> dict[Architecture, Latency]:
    """Random members of a space that meet a speed-up, with their latencies."""
    drawn = space.sample(random.Random(setting.heldout.num_rows), 3 * count)
    teacher = setting.teacher
    models = {str(one): stand_in(KDNASModel, student_config(teacher, one)) for one in drawn}
    models["teacher"] = stand_in(type(teacher.model), teacher.model.config)
    measured = LatencyBenchmark(batch_size=1, sequence_length=128, threads=1, repeats=25).measure(models).measurements
    reference = measured["teacher"].median_ms
    latencies = {one: Latency(measured[str(one)].median_ms, measured[str(one)].iqr_ms, reference) for one in drawn}
    return dict([item for item in latencies.items() if item[1].speedup >= speedup][:count])


def distil(
    setting: Setting, texts: Sequence[StoredTargets], configs: Mapping[str, KDNASConfig], steps: int, seed: int
) -> tuple[np.ndarray, float]:
    """Distil all architectures in one pool: their R² on held-out text, and the seconds that it took."""
    with tempfile.TemporaryDirectory() as folder:
        training = training_arguments(folder, seed, {"max_steps": steps, "learning_rate": 3e-3})
        started = time.monotonic()
        trainer = make_trainer(setting, configs, training, train_dataset=texts[0], eval_dataset=texts[1])
        trainer.train()
        trainer.evaluate()
        seconds = time.monotonic() - started
    qualities = np.array([trainer.pool.measured[name]["r2"] for name in configs])
    del trainer
    gc.collect()
    return qualities, seconds


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation."""
    return float(spearmanr(first, second).statistic)


def lost(seen: np.ndarray, true: np.ndarray, count: int) -> float:
    """By how much the true value of what looks best among ``count`` random ones is below the best of all."""
    draws = np.random.default_rng(0)
    count = min(max(count, 1), len(seen))
    picks = [draws.choice(len(seen), count, replace=False) for _ in range(DRAWS)]
    return float(true.max() - np.mean([true[pick[np.argmax(seen[pick])]] for pick in picks]))


def main() -> None:
    """Distil the same architectures for several lengths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--space", default="quickstart", help="preset or file, as --space of recipes/search.py")
    parser.add_argument("--architectures", type=int, default=16)
    parser.add_argument("--speedup", type=float, default=4.0, help="only architectures that are so much faster")
    parser.add_argument("--steps", type=int, nargs="+", default=(25, 50, 100, 200), help="lengths, of 32 texts a step")
    parser.add_argument("--longer", type=int, default=1000, help="steps of the longer training")
    args = parser.parse_args()
    setting = load_setting(args, sentences=25000, heldout=1000)
    teacher = setting.teacher
    latencies = fast_enough(setting, SearchSpace.load(args.space), args.architectures, args.speedup)
    chosen = list(latencies)
    configs = {f"a{i}": student_config(teacher, one) for i, one in enumerate(chosen)}
    print(
        f"{describe_machine()}\n{len(chosen)} architectures of {args.space} that are {args.speedup:g}x faster, "
        f"seed {args.seed}\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        training = training_arguments(folder, args.seed, {})
        required = required_by(training, teacher, [one.num_hidden_layers for one in chosen])
        dtype = training.teacher_torch_dtype or torch.float32
        texts = [
            store_targets(teacher, one, required, Path(folder), dtype=dtype, batch_size=64)
            for one in (setting.train, setting.heldout)
        ]
        found: dict[int, tuple[np.ndarray, float]] = {}
        again: dict[int, np.ndarray] = {}
        for steps in sorted({*args.steps, args.longer}):
            found[steps] = distil(setting, texts, configs, steps, args.seed)
            print(f"{steps} steps: {found[steps][1]:.0f} s for all", flush=True)
            if steps in args.steps:
                again[steps], _ = distil(setting, texts, configs, steps, args.seed + 1)

    print("\n| architecture | speed-up | " + " | ".join(f"R² at {steps}" for steps in sorted(found)) + " |")
    print("| --- | --- | " + " | ".join("---" for _ in found) + " |")
    for index, one in enumerate(chosen):
        row = " | ".join(f"{found[steps][0][index]:.3f}" for steps in sorted(found))
        print(f"| {one} | {latencies[one].speedup:.2f}x | {row} |")

    def rewards(qualities: np.ndarray) -> np.ndarray:
        return np.array(
            [REWARDS["quality"](float(q), latencies[one]) for q, one in zip(qualities, chosen, strict=True)]
        )

    true = found[args.longer][0]
    reference = min(args.steps, key=lambda steps: abs(steps - REFERENCE))
    budget = CANDIDATES * found[reference][1] / len(chosen)
    print(
        f"\n| steps | seconds a shape | Spearman with {args.longer} steps: R² | reward | R² of two seeds | "
        f"shapes in {budget:.0f} s | R² lost by the pick |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    result: dict[str, dict[str, float]] = {}
    for steps in args.steps:
        quality, seconds = found[steps]
        count = int(budget / (seconds / len(chosen)))
        result[str(steps)] = {
            "quality": round(correlation(quality, true), 3),
            "reward": round(correlation(rewards(quality), rewards(true)), 3),
            "seeds": round(correlation(quality, again[steps]), 3),
            "lost": round(lost(quality, true, count), 4),
        }
        line = result[str(steps)]
        print(
            f"| {steps} | {seconds / len(chosen):.1f} | {line['quality']} | {line['reward']} | {line['seeds']} | "
            f"{count} | {line['lost']} |"
        )
    print(json.dumps({"spearman": result, "architectures": len(chosen), "longer": args.longer}))


if __name__ == "__main__":
    main()
