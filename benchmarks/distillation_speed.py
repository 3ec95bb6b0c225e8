"""What a pool costs: time against one by one, memory against its largest member, two processes against one.

    python benchmarks/distillation_speed.py --preset short

**Episode.** Eight candidates, three epochs over the same proxy set, in one process, one after another:

- `published`: each alone as published, its teacher recomputed for each candidate and epoch, its word embeddings random
  and all of them trained;
- `published, occurring rows` (`--preset long`): the same, but only the word embeddings that occur are trained, which
  gives the same students;
- `one by one`: each alone with the default recipe, which computes the teacher's outputs once for each candidate;
- `one by one, recomputed` (`--preset long`): the same, the teacher recomputed in each epoch. In bf16 its outputs differ
  in their last digit with the batch that they are computed in;
- `pool`: all in one pool with the default recipe, the teacher's outputs computed once, which its time includes.

All take the same texts in the same order, the same batches and the same precision, and each is evaluated once on the
same held-out texts.

**Memory.** The pool, and the member with most weights alone, each in a process of its own: a few steps of 32 texts x 64
tokens. Counted is the peak of the whole process's resident memory from the building of the students to the last step:
Python, libraries, teacher, texts, weights, gradients, optimizer states, activations, and what the allocator keeps of
freed memory (on CUDA the peak of what torch allocates there). Shown beside it are what of this was there before, and
the peak of what is kept for backward passes: the storages that autograd saved, each counted once, without parameters.

**Processes.** The same pool in two processes of one thread, each on a core of its own, against one process of one
thread: the time of the training alone, between barriers, after a training that is not timed. Targets are stored before,
as a search does; or computed in each step, for which the processes divide the texts.

The last line is one JSON object: the time of `published` by that of `pool` (the median over repetitions), the greatest
difference of a candidate's held-out loss between `one by one` and `pool`, the peak memory of the pool by that of its
largest member, and the time of one process by that of two with stored targets.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.distributed

from distillation_quality import training_state_bytes
from distillation_setting import (
    PUBLISHED,
    Setting,
    add_arguments,
    describe_machine,
    load_setting,
    make_trainer,
    shape,
    training_arguments,
)
from kdnas_hf import StudentPool, share_cpu_threads
from kdnas_hf.distillation.stored_targets import store_if_it_pays
from kdnas_hf.students import KDNASConfig

# layers, hidden size, heads, FFN, activation: shapes of the search space of the quickstart and around it
CANDIDATES = (
    (2, 192, 6, 768, "gelu"),
    (2, 288, 6, 1024, "relu"),
    (2, 384, 12, 1024, "gelu"),
    (3, 192, 6, 1024, "gelu"),
    (3, 288, 6, 768, "relu"),
    (3, 384, 6, 1024, "gelu"),
    (4, 192, 6, 512, "gelu"),
    (4, 288, 12, 1024, "gelu"),
)
PARTS = ("episode", "memory", "processes")
SENTENCES = {"short": 512, "long": 1600}
REPEATS = {"short": 1, "long": 3}
# of the memory: full batches, so that activations are what they can be
MEMORY_STEPS, MEMORY_TEXTS, MEMORY_LENGTH = 3, 32, 64
# of the processes: texts in one training, and how often one process and two are launched in turn
PROCESS_SENTENCES = {"short": 256, "long": 1600}
PROCESS_REPEATS = {"short": 3, "long": 5}
STORED, COMPUTED = "stored", "computed"


def candidates(setting: Setting) -> dict[str, KDNASConfig]:
    """The students of the episode."""
    return {f"candidate_{i + 1}": shape(setting.teacher, *given) for i, given in enumerate(CANDIDATES)}


# ---- the episode ----


def distil(
    setting: Setting, students: Mapping[str, KDNASConfig], recipe: Mapping[str, Any], seed: int
) -> tuple[float, dict[str, float]]:
    """Distil some students together; the seconds that it took, and the held-out loss of each."""
    with tempfile.TemporaryDirectory() as folder:
        args = training_arguments(folder, seed, {"num_train_epochs": 3, **recipe})
        started = time.perf_counter()
        pool = StudentPool.create(students, setting.teacher, args)
        # as a search does it: before the first pool, for all of them
        texts = [setting.train, setting.heldout]
        stored = store_if_it_pays(
            setting.teacher, texts, pool.required, pool.storable, args, passes=args.num_train_epochs
        )
        train, heldout = stored or texts
        trainer = make_trainer(setting, pool, args, train_dataset=train, eval_dataset=heldout)
        trainer.train()
        metrics = trainer.evaluate()
        seconds = time.perf_counter() - started
    if len(students) == 1:
        losses = dict.fromkeys(students, metrics["eval_loss"])
    else:
        losses = {name: metrics[f"eval_{name}_loss"] for name in students}
    del trainer
    gc.collect()
    return seconds, losses


def one_by_one(
    setting: Setting, students: Mapping[str, KDNASConfig], recipe: Mapping[str, Any], seed: int
) -> tuple[float, dict[str, float]]:
    """Distil each student alone."""
    seconds = 0.0
    losses: dict[str, float] = {}
    for name, config in students.items():
        took, loss = distil(setting, {name: config}, recipe, seed)
        seconds += took
        losses |= loss
    return seconds, losses


def time_episode(args: argparse.Namespace) -> dict[str, float]:
    """Time the ways to distil an episode side by side."""
    setting = load_setting(args, sentences=args.sentences or SENTENCES[args.preset], heldout=256)
    students = candidates(setting)
    _ = setting.teacher.embeddings.basis  # computed once for a search, and not what is timed
    print(
        f"{len(students)} candidates x 3 epochs x {len(setting.train):,} texts "
        f"({sum(setting.train['length']):,} tokens), batches of 32, seed {args.seed}\n"
    )
    ways: dict[str, dict[str, Any]] = {"published": PUBLISHED, "one by one": {}}
    if args.preset == "long":
        ways["published, occurring rows"] = PUBLISHED | {"occurring_embeddings": True}
        ways["one by one, recomputed"] = {"cache_teacher_states": "false"}
    times: dict[str, list[float]] = {name: [] for name in (*ways, "pool")}
    difference = 0.0
    for _repeat in range(REPEATS[args.preset]):
        seconds, pooled = distil(setting, students, {}, args.seed)
        times["pool"].append(seconds)
        for way, recipe in ways.items():
            seconds, losses = one_by_one(setting, students, recipe, args.seed)
            times[way].append(seconds)
            if way == "one by one":
                difference = max(difference, *(abs(pooled[name] - losses[name]) for name in students))
    pool = statistics.median(times["pool"])
    print("| | seconds, median (lowest to highest) | against the pool |\n| --- | --- | --- |")
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"| {name} | {spread(values)} | {middle / pool:.2f}x |")
    print(f"\ngreatest difference of a held-out loss, one by one and pool: {difference:.1e}\n", flush=True)
    ratios = [p / q for p, q in zip(times["published"], times["pool"], strict=True)]
    # two digits that count: rounded to 0, a difference would look like none
    return {"speedup": round(statistics.median(ratios), 2), "max_loss_difference": float(f"{difference:.2g}")}


# ---- memory ----


class SavedMemory:
    """Counts what autograd keeps for backward passes: the bytes of the storages that are alive, each once.

    Args:
        model: Its parameters are not counted: they are there anyway.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.uses: dict[int, int] = {}
        self.bytes = self.peak = 0

    def watch(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Count inside of this context."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor)

    def _pack(self, tensor: torch.Tensor) -> _Kept:
        kept = _Kept(tensor)
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in self.known:
            if not self.uses.get(place):
                self.bytes += size
                self.peak = max(self.peak, self.bytes)
            self.uses[place] = self.uses.get(place, 0) + 1
            weakref.finalize(kept, self._free, place, size)  # when the backward pass has used it
        return kept

    def _free(self, place: int, size: int) -> None:
        self.uses[place] -= 1
        if not self.uses[place]:
            del self.uses[place]
            self.bytes -= size


class _Kept:
    """A tensor that autograd keeps."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def start_counting_memory() -> int:
    """Forget the peak until now; the bytes that are in use now."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):  # elsewhere the peak is that of the whole life of the process
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_memory() -> int:
    """The most bytes that were in use since `start_counting_memory`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(name: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def full_texts(setting: Setting, count: int, length: int) -> datasets.Dataset:
    """Texts of exactly so many tokens, made of the training texts one after the other."""
    begin, end = setting.train[0]["input_ids"][0], setting.train[0]["input_ids"][-1]
    words = [token for row in setting.train["input_ids"] for token in row[1:-1]]
    inner = length - 2
    words *= -(-count * inner // len(words))
    rows = [[begin, *words[i * inner : (i + 1) * inner], end] for i in range(count)]
    return datasets.Dataset.from_dict({"input_ids": rows, "length": [length] * count})


def train_for_memory(args: argparse.Namespace) -> None:
    """In a child process: a few steps of the pool or of its largest member, and what they took, as JSON."""
    setting = load_setting(args, sentences=SENTENCES["short"], heldout=16)
    students = candidates(setting)
    if args.members == "largest":
        students = dict([max(students.items(), key=lambda item: _parameters(item[1]))])
    texts = full_texts(setting, MEMORY_STEPS * MEMORY_TEXTS, MEMORY_LENGTH)
    _ = setting.teacher.embeddings.basis
    found: dict[str, Any] = {"members": list(students)}
    for watched in (False, True):  # counting takes memory of its own
        with tempfile.TemporaryDirectory() as folder:
            training = training_arguments(folder, args.seed, {"max_steps": MEMORY_STEPS})
            before = start_counting_memory()
            trainer = make_trainer(setting, students, training, train_dataset=texts, eval_dataset=None)
            saved = SavedMemory(trainer.pool)
            with saved.watch() if watched else contextlib.nullcontext():
                trainer.train()
            if watched:
                found["saved"] = saved.peak
            else:
                found |= {"before": before, "peak": peak_memory(), "state": training_state_bytes(trainer)}
        del trainer, saved
        gc.collect()
    print(json.dumps(found))


def _parameters(config: KDNASConfig) -> int:
    size = config.hidden_size
    return sum(4 * size * size + 2 * size * ffn for ffn in config.intermediate_sizes_per_layer)


def measure_memory(args: argparse.Namespace) -> dict[str, float]:
    """Peak memory of the pool and of its largest member, each in a process of its own."""
    pool, largest = (run_worker(args, "memory", "--members", members) for members in ("all", "largest"))
    mib = 2**20
    print(
        f"| {MEMORY_TEXTS} texts x {MEMORY_LENGTH} tokens, {MEMORY_STEPS} steps | pool of {len(pool['members'])} | "
        f"{largest['members'][0]} alone | ratio |\n| --- | --- | --- | --- |"
    )
    for measured in (pool, largest):
        measured["added"] = measured["peak"] - measured["before"]
    for name, key in {
        "peak memory of the process, MiB": "peak",
        "of this there before the training: Python, libraries, teacher, texts": "before",
        "added by the training": "added",
        "weights that train, their gradients and moments": "state",
        "peak of what is kept for backward passes": "saved",
    }.items():
        print(f"| {name} | {pool[key] / mib:,.0f} | {largest[key] / mib:,.0f} | {pool[key] / largest[key]:.2f} |")
    print(flush=True)
    return {"peak_memory_ratio": round(pool["peak"] / largest["peak"], 3)}


# ---- processes ----


def train_for_time(args: argparse.Namespace) -> None:
    """In one or two child processes: train the pool with stored and with computed targets; the seconds, as JSON."""
    rank, processes = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    args.threads = 1
    setting = load_setting(args, sentences=args.sentences or PROCESS_SENTENCES[args.preset], heldout=16)
    students = candidates(setting)
    _ = setting.teacher.embeddings.basis
    seconds = {}
    shared = Path(args.folder)
    for targets in (STORED, STORED, COMPUTED):  # the first is not timed: kernels are compiled for each shape
        recipe = {"num_train_epochs": 1, "cache_teacher_states": "true" if targets == STORED else "false"}
        training = training_arguments(shared / f"{processes}-{targets}", args.seed, recipe)
        training.cache_dir = str(shared / "targets")  # of all launches
        pool = StudentPool.create(students, setting.teacher, training)
        stored = store_if_it_pays(
            setting.teacher, [setting.train], pool.required, pool.storable, training, passes=1, wait=_wait
        )
        texts = stored[0] if stored else setting.train
        trainer = make_trainer(setting, pool, training, train_dataset=texts, eval_dataset=None)
        _wait()
        started = time.perf_counter()
        trainer.train()
        _wait()
        seconds[targets] = time.perf_counter() - started
    if rank == 0:
        print(json.dumps(seconds))


def _wait() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def compare_processes(args: argparse.Namespace) -> dict[str, float | None]:
    """How many times faster two processes train the pool than one, each with a core of its own."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2 or torch.cuda.is_available():
        print("two processes are compared on a CPU with two cores or more; there are none here.\n")
        return {"two_process_speedup": None}
    seconds: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _repeat in range(args.process_repeats or PROCESS_REPEATS[args.preset]):
            for processes in (1, 2):
                found = run_worker(args, "processes", "--folder", folder, processes=processes)
                for targets, taken in found.items():
                    seconds.setdefault((targets, processes), []).append(taken)
    ratios = {}
    print(
        "| targets | one process, seconds | two processes | one by two, median (lowest to highest) |\n"
        "| --- | --- | --- | --- |"
    )
    for targets in (STORED, COMPUTED):
        one, two = seconds[targets, 1], seconds[targets, 2]
        ratios[targets] = [a / b for a, b in zip(one, two, strict=True)]
        print(f"| {targets} | {spread(one)} | {spread(two)} | {spread(ratios[targets], 2)} |")
    print(flush=True)
    return {"two_process_speedup": round(statistics.median(ratios[STORED]), 2)}


# ---- all of them ----


def run_worker(args: argparse.Namespace, worker: str, *more: str, processes: int = 1) -> dict[str, Any]:
    """Run a part of this script in fresh processes, and read the last line that the first of them prints."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), __file__, "--worker", worker, *more]
    command += ["--preset", args.preset, "--teacher", args.teacher, "--dataset", *args.dataset]
    command += ["--max_length", str(args.max_length), "--seed", str(args.seed)]
    for name in ("threads", "sentences"):
        command += [] if getattr(args, name) is None else [f"--{name}", str(getattr(args, name))]
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if worker == "processes" else {})
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"the part {worker} failed:\n{ended.stderr[-4000:]}")
    return json.loads(ended.stdout.strip().splitlines()[-1])


def spread(values: list[float], digits: int = 1) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Measure the parts one after the other, or be a child process of one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--sentences", type=int, default=None, help="texts of the proxy set; by default the preset's")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--process_repeats", type=int, default=None, help="launches of one and of two processes")
    for hidden in ("worker", "members", "folder"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        {"memory": train_for_memory, "processes": train_for_time}[args.worker](args)
        return
    share_cpu_threads(args.threads)
    print(f"{describe_machine()}\n", flush=True)
    measured: dict[str, float | None] = {}
    if "episode" in args.parts:
        measured |= time_episode(args)
    if "memory" in args.parts:
        measured |= measure_memory(args)
    if "processes" in args.parts:
        measured |= compare_processes(args)
    names = ("speedup", "max_loss_difference", "peak_memory_ratio", "two_process_speedup")
    print(json.dumps({name: measured[name] for name in names if name in measured}))


if __name__ == "__main__":
    main()
