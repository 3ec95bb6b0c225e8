"""Which learning rate is best for which shape: one for all, one scaled with the width, or the better of two for each?

    python benchmarks/learning_rates.py --threads 1

Shapes of several widths and depths are distilled with several learning rates, for each length of training in one pool
from the same targets. Printed is the R² of each, and by how much three ways of choosing the rate fall short of the best
rate of each shape: the one rate that is best on average, one that is scaled with a power of the width (fitted), and the
better of the two that are best together (which trains every shape twice). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from distillation_setting import add_arguments, describe_machine, load_setting, make_trainer, shape, training_arguments
from kdnas_hf.distillation.pool import required_by
from kdnas_hf.distillation.stored_targets import store_targets

SHAPES = [
    (2, 192, 6, 768),
    (4, 192, 6, 768),
    (3, 288, 6, 768),
    (1, 384, 12, 1536),
    (2, 384, 12, 1024),
    (4, 384, 12, 768),
]


def main() -> None:
    """Distil every shape with every rate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--steps", type=int, nargs="+", default=(100, 400))
    parser.add_argument("--rates", type=float, nargs="+", default=(1e-3, 2e-3, 3e-3, 6e-3))
    args = parser.parse_args()
    setting = load_setting(args, sentences=32 * max(args.steps), heldout=1000)
    configs = {f"{one[0]}x{one[1]}": shape(setting.teacher, *one) for one in SHAPES}
    print(f"{describe_machine()}\nseed {args.seed}\n", flush=True)
    found: dict[int, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        training = training_arguments(folder, args.seed, {})
        required = required_by(training, setting.teacher, [config.num_hidden_layers for config in configs.values()])
        dtype = training.teacher_torch_dtype or torch.float32
        texts = [
            store_targets(
                setting.teacher,
                one,
                required,
                folder,
                dtype=dtype,
                batch_size=64,
            )
            for one in (setting.train, setting.heldout)
        ]
        for steps in args.steps:
            rows = []
            for rate in args.rates:
                training = training_arguments(
                    Path(folder) / "training", args.seed, {"max_steps": steps, "learning_rate": rate}
                )
                trainer = make_trainer(setting, configs, training, train_dataset=texts[0], eval_dataset=texts[1])
                trainer.train()
                trainer.evaluate()
                # a shape that diverged is worth nothing
                rows.append([trainer.pool.measured.get(name, {"r2": 0.0})["r2"] for name in configs])
                del trainer
                gc.collect()
            found[steps] = np.array(rows)  # (rates, shapes)
            print(f"| R² after {steps} steps | " + " | ".join(configs) + " |\n| --- " + "| --- " * len(configs) + "|")
            for rate, row in zip(args.rates, rows, strict=True):
                print(f"| {rate:g} | " + " | ".join(f"{value:.3f}" for value in row) + " |", flush=True)
            print()
    widths = np.array([width for _, width, *_ in SHAPES])
    result = {str(steps): shortfalls(r2, np.array(args.rates), widths) for steps, r2 in found.items()}
    for steps, one in result.items():
        print(f"{steps} steps, R² lost on average beside the best rate of each shape: {one}")
    print(json.dumps(result))


def shortfalls(r2: np.ndarray, rates: np.ndarray, widths: np.ndarray) -> dict[str, float]:
    """Mean R² that each way of choosing a rate loses.

    Args:
        r2: ``(rates, shapes)``.
        rates: ``(rates,)``.
        widths: ``(shapes,)``.
    """
    best = r2.max(0)
    shapes = np.arange(r2.shape[1])
    ways: dict[str, float] = {}
    for power in (0.5, 1.0):
        losses = []
        for reference in rates:  # the rate of the widest shape
            wanted = reference * (widths.max() / widths) ** power
            nearest = np.abs(np.log(rates[:, None] / wanted)).argmin(0)
            losses.append((best - r2[nearest, shapes]).mean())
        ways[f"scaled with width to the power of -{power:g}"] = min(losses)
    pairs = itertools.combinations(range(len(rates)), 2)
    return {
        "one rate": round(float((best - r2).mean(1).min()), 4),
        **{name: round(float(loss), 4) for name, loss in ways.items()},
        "the better of two": round(min(float((best - r2[list(pair)].max(0)).mean()) for pair in pairs), 4),
    }


if __name__ == "__main__":
    main()
