"""Measure every architecture of a small space by a real mini-KD: the table that controllers race on.

    python benchmarks/architecture_table.py                  # half an hour on two cores; started again, it goes on
    python benchmarks/architecture_table.py --part 1/2       # half of it, beside a process with --part 2/2

Latency is measured first, of all architectures side by side. Then all are distilled as the quickstart distils its
candidates (100 steps of 32 texts, the same teacher and text), in pools; the learning curve is read after a quarter and
half of the steps too, so that successive halving can be replayed. Some architectures are measured again with other
seeds, which draw other batches and initial weights: their spread is the noise floor. When all is measured, the table
is written to benchmarks/architecture_table.csv. The last line on the screen is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm.auto import tqdm
from transformers import TrainerCallback

from distillation_setting import (
    Setting,
    add_arguments,
    describe_machine,
    load_setting,
    make_trainer,
    training_arguments,
)
from kdnas_hf import Architecture, LatencyBenchmark, SearchSpace, student_config
from kdnas_hf.latency import stand_in
from kdnas_hf.students import KDNASModel
from kdnas_hf.students.architecture import CHOICES

TABLE = Path(__file__).with_suffix(".csv")
SPACE = Path(__file__).with_suffix(".yaml")
SENTENCES = 3200  # one pass of them is a mini-KD of 100 steps
READ_AT = (0.25, 0.5, 1.0)  # of the steps
LATENCIES = "latencies.json"
ROWS = "rows.jsonl"


@dataclass(frozen=True)
class Measurement:
    """One mini-KD of an architecture, still to be made."""

    architecture: Architecture
    seed: int


class ReadLearningCurve(TrainerCallback):
    """Asks for an evaluation at the steps where the learning curve is read."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        control.should_evaluate = state.global_step in {round(share * state.max_steps) for share in READ_AT}


def plan(space: SearchSpace, seeds: int, repeated: int, first_seed: int) -> list[Measurement]:
    """Every architecture once, in random order, then a random sample of them with other seeds."""
    shuffled = random.Random(0).sample(list(space), len(space))
    again = [Measurement(a, first_seed + i) for i in range(1, seeds) for a in shuffled[:repeated]]
    return [Measurement(a, first_seed) for a in shuffled] + again


def measure_latencies(setting: Setting, space: SearchSpace) -> dict[str, list[float]]:
    """Median and interquartile range of each architecture and the teacher, in milliseconds."""
    teacher = setting.teacher
    models = {str(a): stand_in(KDNASModel, student_config(teacher, a)) for a in space}
    models["teacher"] = stand_in(type(teacher.model), teacher.model.config)
    report = LatencyBenchmark(batch_size=1, sequence_length=128, threads=1, repeats=15).measure(models)
    return {name: [m.median_ms, m.iqr_ms] for name, m in report.measurements.items()}


def distil(setting: Setting, pool: Sequence[Architecture], seed: int) -> list[dict[str, Any]]:
    """Mini-KD of a pool: what was read of each learning curve."""
    with tempfile.TemporaryDirectory() as folder:
        training = training_arguments(folder, seed, {"learning_rate": 3e-3, "num_train_epochs": 1})
        configs = {f"a{i}": student_config(setting.teacher, architecture) for i, architecture in enumerate(pool)}
        trainer = make_trainer(setting, configs, training, callbacks=[ReadLearningCurve()])
        trainer.train()
    readings = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    rows = []
    for name, architecture in zip(configs, pool, strict=True):
        prefix = "eval_" if len(pool) == 1 else f"eval_{name}_"
        row: dict[str, Any] = architecture.as_dict() | {"seed": seed}
        row["tokens"] = int(readings[-1]["eval_trained_tokens"])
        for reading in readings:
            row[f"loss_{reading['step']}"] = round(reading[f"{prefix}last_layer_loss"], 5)
            row[f"r2_{reading['step']}"] = round(reading[f"{prefix}r2"], 5)
        rows.append(row)
    del trainer
    gc.collect()
    return rows


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """What has been measured so far, of all parts."""
    path = folder / ROWS
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.is_file() else []


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], latencies: Mapping[str, Sequence[float]]) -> None:
    """One line for each mini-KD, sorted by architecture and seed."""
    teacher_ms = latencies["teacher"][0]
    table = []
    for row in rows:
        median, iqr = latencies[str(architecture_of(row))]
        times = {"latency_ms": median, "latency_iqr_ms": iqr, "teacher_latency_ms": teacher_ms}
        table.append({**row, **{name: round(value, 4) for name, value in times.items()}})
    table.sort(key=lambda row: [row[name] for name in (*CHOICES, "seed")])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def architecture_of(row: Mapping[str, Any]) -> Architecture:
    """The architecture of a row."""
    return Architecture(**{name: row[name] for name in CHOICES})


def noise_floor(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Standard deviation over seeds of R² at the end, pooled over the architectures that have several."""
    last = max((key for key in rows[0] if key.startswith("r2_")), key=lambda key: int(key.removeprefix("r2_")))
    groups: dict[Architecture, list[float]] = {}
    for row in rows:
        groups.setdefault(architecture_of(row), []).append(row[last])
    variances = [statistics.variance(values) for values in groups.values() if len(values) > 1]
    return statistics.fmean(variances) ** 0.5 if variances else None


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--space", default=str(SPACE), help="preset or file, as --space of recipes/search.py")
    parser.add_argument("--pool_size", type=int, default=12, help="architectures that are distilled together")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the architectures that are measured again")
    parser.add_argument("--repeated", type=int, default=24, help="how many are")
    parser.add_argument("--part", default="1/1", help="K/N: every Nth pool, from the Kth")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/architecture_table"), help="what is kept")
    parser.add_argument("--table", type=Path, default=TABLE, help="the finished table")
    args = parser.parse_args()
    part, parts = (int(number) for number in args.part.split("/"))
    if not 1 <= part <= parts:
        parser.error(f"--part {args.part}: K must be 1 to N.")
    space = SearchSpace.load(args.space)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(args.output_dir / ".lock")

    setting = load_setting(args, sentences=SENTENCES, heldout=1000)
    print(f"{describe_machine()}\n{len(space)} architectures of {args.space}", flush=True)
    with lock:  # one part measures latency, and the others wait for it
        path = args.output_dir / LATENCIES
        if not path.is_file():
            path.write_text(json.dumps(measure_latencies(setting, space), indent=1))
        latencies = json.loads(path.read_text())

    wanted = plan(space, args.seeds, args.repeated, args.seed)
    pools = []
    for seed in sorted({measurement.seed for measurement in wanted}):
        same = [measurement.architecture for measurement in wanted if measurement.seed == seed]
        pools += [(seed, same[start : start + args.pool_size]) for start in range(0, len(same), args.pool_size)]
    started = time.monotonic()
    for seed, pool in tqdm(pools[part - 1 :: parts], unit="pool", disable=None):
        done = {(architecture_of(row), row["seed"]) for row in read_rows(args.output_dir)}
        missing = [architecture for architecture in pool if (architecture, seed) not in done]
        if not missing:
            continue
        rows = distil(setting, missing, seed)
        with lock, (args.output_dir / ROWS).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    rows = read_rows(args.output_dir)
    if len(rows) == len(wanted):
        write_table(args.table, rows, latencies)
    noise = noise_floor(rows)
    print(
        json.dumps(
            {
                "measured": len(rows),
                "of": len(wanted),
                "minutes": round((time.monotonic() - started) / 60, 1),
                "r2_noise": None if noise is None else round(noise, 4),
            }
        )
    )


if __name__ == "__main__":
    main()
