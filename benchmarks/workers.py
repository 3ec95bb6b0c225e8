"""How many architectures a minute one, two and four workers on one study measure.

    python benchmarks/workers.py                                        # the quickstart's teacher, text and space
    python benchmarks/workers.py --workers 1 2 --storage postgresql+psycopg://user@host/database

Each worker is a process of `recipes/search.py` with one thread, on a core of its own as far as there are cores. All
start at the same time and each prepares its own data; time is counted from the first mini-KD to the last result. Shown
beside it: the greatest share of that time that a worker waited for others, and that it spent in calls of the storage.

What as many machines would do is **computed**, not measured: workers that share a core take turns, so with a core for
each they are faster by as many times as there are workers to a core. The storage's share is small enough to leave out.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).parents[1] / "recipes" / "search.py"
CONFIG = RECIPE.parent / "configs" / "quickstart.yaml"


def measure(workers: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run a search with a number of workers, up to its full distillation."""
    storage = args.storage or f"journal:{folder / 'study.log'}"
    name = f"benchmark-{workers}-{uuid.uuid4().hex[:6]}"
    cores = sorted(os.sched_getaffinity(0))
    processes = []
    for index in range(workers):
        command = [
            sys.executable, str(RECIPE), str(args.config), "--output_dir", str(folder / str(index)),
            "--storage", storage, "--study_name", name, "--num_episodes", str(args.episodes),
            "--candidates_per_episode", str(args.candidates), "--pool_size", str(args.pool_size),
            "--max_steps", "1", "--disable_tqdm", "true", "--cpu_threads", "1",
        ]  # fmt: skip
        log = (folder / f"{index}.log").open("wb")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        core = cores[index % len(cores)]
        processes.append(
            subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=environment,
                preexec_fn=functools.partial(os.sched_setaffinity, 0, {core}),
            )
        )
    first, last, measured = None, time.monotonic(), 0
    running = True
    while running:
        running = any(process.poll() is None for process in processes)
        for index, process in enumerate(processes):
            if process.returncode:
                raise SystemExit((folder / f"{index}.log").read_text(encoding="utf-8")[-3000:])
        begun = any((folder / str(index) / "episodes").exists() for index in range(workers))
        now = time.monotonic()
        first = now if first is None and begun else first
        lines = {line for index in range(workers) for line in _lines(folder / str(index) / "architectures.jsonl")}
        if len(lines) > measured:
            measured, last = len(lines), now
        time.sleep(0.2)
    assert first is not None
    costs = [json.loads((folder / str(i) / "cost.json").read_text(encoding="utf-8")) for i in range(workers)]
    seconds = last - first
    return {
        "workers": workers,
        "architectures": measured,
        "seconds": round(seconds, 1),
        "per_minute": round(60 * measured / seconds, 2),
        "mini_kd_seconds": [cost.get("mini_kd", 0.0) for cost in costs],
        "waiting_seconds": [cost.get("waiting", 0.0) for cost in costs],
        "storage_seconds": [cost.get("storage", 0.0) for cost in costs],
    }


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def main() -> None:
    """Measure every number of workers, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--storage", default=None, help="by default a journal in a temporary folder")
    parser.add_argument("--episodes", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--pool_size", type=int, default=0, help="0: a fair share")
    args = parser.parse_args()
    results = []
    for workers in args.workers:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(workers, args, Path(folder)))
        print(results[-1])
    one = results[0]["per_minute"]
    cores = len(os.sched_getaffinity(0))
    print(
        "| workers | architectures a minute | against the first row | waiting | storage | computed for a machine each |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for r in results:
        shared = max(r["workers"] / cores, 1.0)
        computed = r["per_minute"] * shared
        waiting, storage = (100 * max(r[key]) / r["seconds"] for key in ("waiting_seconds", "storage_seconds"))
        print(
            f"| {r['workers']} | {r['per_minute']:.1f} | {r['per_minute'] / one:.2f}x | {waiting:.0f} % | "
            f"{storage:.1f} % | {computed:.1f} |"
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
