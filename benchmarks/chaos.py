"""What a search survives: it is killed, its disk fills, its files are damaged, candidates diverge or do not fit.

    python benchmarks/chaos.py --kills 3

The search of `chaos_search.py` runs undisturbed once with each number of processes. Then it is disturbed, started again
until it ends, and compared with the undisturbed one: architectures, losses, rewards, and the student's weights byte by
byte. Kills are SIGKILLs to all processes of a search: one in six while Python starts, two at a random moment of the
search, and three just before a random one of its file operations, so that rare moments get their share.

A distillation of two students in three stages is killed as often: three times in six after a random step of any stage,
twice just before a file operation, once at a random moment. Its students' weights are compared byte by byte.

A line of ``architectures.jsonl`` counts as lost if it was readable before a restart and is not there, unchanged,
afterwards. An architecture counts as repeated if it stands there twice, or if a step of its mini-KD is made after the
last checkpoint of that mini-KD; a stage likewise.

The last line is one JSON object. The exit status is 1 if a start failed, or something was lost, repeated or differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psutil

SCRIPT = Path(__file__).with_name("chaos_search.py")
CHECKS = ("disk", "view", "study", "nan", "memory")
KILLS_PER_RUN = 5
HALTS = {"operation": "--stop_at", "step": "--stop_at_step"}  # where the run itself halts, so as to be killed there
TIME_LIMIT = 600  # seconds for one start
SMALL_DISK = "16m"


@dataclass(frozen=True)
class Moment:
    """When a run is killed.

    Attributes:
        after: ``launch`` or ``begin`` (of the run itself), which ``value`` counts seconds from; or ``operation``, or
            ``step``.
        value: Seconds, or the number of the file operation just before which it is killed, or of the step after which.
    """

    after: str
    value: float

    def __str__(self) -> str:
        if self.after in HALTS:
            return f"{'file operation' if self.after == 'operation' else 'step'} {self.value:.0f}"
        return f"{self.value:.1f} s after {'the launch' if self.after == 'launch' else 'it began'}"


@dataclass
class Start:
    """What became of one start of a run: ``status`` is None where it was killed."""

    status: int | None
    output: str
    startup: float
    seconds: float

    @property
    def last_line(self) -> str:
        """Where an error says what to do."""
        return (self.output.strip().splitlines() or ["(no output)"])[-1]

    @property
    def error(self) -> str:
        """The line that says what went wrong, or the last one."""
        found = [line for line in self.output.splitlines() if line.startswith("error:")]
        return found[-1] if found else self.last_line


@dataclass
class Run:
    """A directory in which something is started as often as it takes.

    Attributes:
        folder: Of the run.
        processes: How many train.
        events_path: The file of the run's events.
        lost: What was there once, and was missing or changed later.
        starts: How often it was started.
        options: What tells the script what to do.
        kills_at: What it is killed after, each as often as the others.
    """

    folder: Path
    processes: int
    events_path: Path
    lost: int = 0
    starts: int = 0
    options: ClassVar[tuple[str, ...]] = ()
    kills_at: ClassVar[tuple[str, ...]] = ()

    def events(self) -> list[list[str]]:
        """What happened so far, over all starts."""
        return [line.split() for line in _text(self.events_path).splitlines()]

    def start(
        self,
        *arguments: str,
        moment: Moment | None = None,
        when_begun: Callable[[float], None] = lambda seconds: None,
    ) -> Start:
        """Start the script, and wait until it ends or kill it.

        Args:
            arguments: For the script.
            moment: When to kill it; None to let it end.
            when_begun: Called again and again with the seconds since the run began.
        """
        self.starts += 1
        before = len(self.events())
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.processes)]
        command = [sys.executable, *(launcher if self.processes > 1 else []), str(SCRIPT)]
        command += [str(self.folder), str(self.events_path), *self.options, *arguments]
        if moment is not None and moment.after in HALTS:
            command += [HALTS[moment.after], f"{moment.value:.0f}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        launched, begun = time.monotonic(), None
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            try:
                while (status := process.poll()) is None:
                    now = time.monotonic()
                    if now - launched > TIME_LIMIT:
                        status = -1
                        output.write(f"error: it did not end within {TIME_LIMIT} s".encode())
                        break
                    names = [event[0] for event in self.events()[before:]]
                    if begun is None and "begin" in names:
                        begun = now
                    if begun is not None:
                        when_begun(now - begun)
                    if moment is not None and _reached(moment, now - launched, begun and now - begun, names):
                        break
                    time.sleep(0.01)
            finally:
                kill(process)
            output.seek(0)
            text = output.read().decode(errors="replace")
        ended = time.monotonic()
        return Start(status, text, (begun or ended) - launched, ended - (begun or ended))

    def look(self) -> None:
        """See what is there, and whether something is not there any more."""

    @property
    def again(self) -> set[str]:
        """Pools or stages that trained on after their last checkpoint."""
        whole: set[str] = set()
        again: set[str] = set()
        for event in self.events():
            if event[0] == "whole":
                whole.add(event[1])
            elif event[0] == "step" and event[1] in whole:
                again.add(event[1])
        return again

    @property
    def repeated(self) -> int:
        """What was done a second time."""
        return len(self.again)

    @property
    def steps(self) -> tuple[int, int]:
        """Optimizer steps that were made, and how many different ones."""
        made = [(event[1], event[2]) for event in self.events() if event[0] == "step"]
        return len(made), len(set(made))

    def outcome(self) -> Any:
        """What it came to, without what depends on the clock."""
        return self.weights()

    def weights(self) -> dict[str, str]:
        """Digests of the weights of the student, or of all students."""
        files = sorted((self.folder / "student").rglob("model.safetensors"))
        return {str(f.relative_to(self.folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    def describe(self) -> str:
        """How far it is."""
        return f"{self.steps[1]} steps made"


@dataclass
class StagedDistillation(Run):
    """Two students are distilled in three stages."""

    options = ("--staged",)
    kills_at = ("step", "step", "step", "operation", "operation", "begin")


@dataclass
class Search(Run):
    """A search.

    Attributes:
        lines: Its lines that were readable at any time, by trial number.
    """

    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    kills_at = ("begin", "begin", "operation", "operation", "operation", "launch")

    def trials(self) -> list[dict[str, Any]]:
        """The readable lines of ``architectures.jsonl``."""
        records = []
        for line in _text(self.folder / "architectures.jsonl").splitlines():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return records

    def look(self) -> None:
        """Count what earlier looks at ``architectures.jsonl`` had shown and this one does not."""
        now = {record["number"]: record for record in self.trials()}
        self.lost += sum(now.get(number) != record for number, record in self.lines.items())
        self.lines |= now

    @property
    def repeated(self) -> int:
        """Architectures that were measured a second time."""
        architectures = [json.dumps(record["architecture"]) for record in self.trials()]
        pools = [pool for name in self.again if (pool := re.fullmatch(r"\d+-(\d+)-(\d+)", name))]
        candidates = [int(pool[2]) - int(pool[1]) + 1 for pool in pools]
        confirmations = [name for name in self.again if name.startswith("seed_")]
        return len(architectures) - len(set(architectures)) + sum(candidates) + len(confirmations)

    def outcome(self, without: Sequence[int] = ()) -> Any:
        """The trials and the digest of the student's weights.

        Args:
            without: Trials to leave out.
        """
        records = [{key: value for key, value in record.items() if key != "seconds"} for record in self.trials()]
        return [record for record in records if record["number"] not in without], self.weights()

    def describe(self) -> str:
        """How far it is."""
        return f"{len(self.lines)} architectures measured, {self.lost} lost"


KINDS: dict[str, type[Run]] = {"search": Search, "stages": StagedDistillation}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _reached(moment: Moment, since_launch: float, since_begin: float | None, events: list[str]) -> bool:
    if moment.after in HALTS:
        return "stopped" in events
    elapsed = since_launch if moment.after == "launch" else since_begin
    return elapsed is not None and elapsed >= moment.value


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a process and all that it launched, and wait until they are gone."""
    if process.poll() is not None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        parent.suspend()  # it launches no other while its family is looked up
        family = [parent, *parent.children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family[1:], timeout=30)
    process.wait()


@dataclass
class Row:
    """One line of the table, and whether all was as it should be."""

    disturbance: str
    happened: str
    fine: bool
    lost: int = 0
    repeated: int = 0
    same: bool = True

    def __str__(self) -> str:
        verdict = "the same" if self.same else "**differs**"
        return f"| {self.disturbance} | {self.happened} | {self.lost} | {self.repeated} | {verdict} |"


@dataclass
class Reference:
    """The undisturbed run with some number of processes."""

    run: Run
    start: Start
    operations: int

    def same(self, run: Run) -> bool:
        """Whether a run came to the same."""
        return bool(run.weights()) and run.outcome() == self.run.outcome()


def worst_of_last_episode(search: Search) -> int:
    """A candidate on which nothing later depends."""
    records = search.trials()
    last = [record for record in records if record["episode"] == records[-1]["episode"]]
    return min(last, key=lambda record: record["reward"])["number"]


class Chaos:
    """The disturbances.

    Args:
        folder: For all run directories.
        seed: Of the moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.references: dict[tuple[type[Run], int], Reference] = {}
        self.survived = {Search: 0, StagedDistillation: 0}

    def search(self, name: str, processes: int, disk: Path | None = None) -> Search:
        """A search that was not started yet."""
        return Search((disk or self.folder) / name, processes, self.folder / f"{name}.events")

    def reference(self, kind: type[Run], processes: int) -> Reference:
        """The undisturbed run."""
        key = kind, processes
        if key not in self.references:
            name = f"undisturbed-{kind.__name__}-{processes}"
            run = kind(self.folder / name, processes, self.folder / f"{name}.events")
            start = run.start()
            if start.status != 0:
                raise RuntimeError(f"the undisturbed run failed:\n{start.output[-4000:]}")
            run.look()
            operations = next(int(event[1]) for event in run.events() if event[0] == "operations")
            self.references[key] = Reference(run, start, operations)
            say(
                f"undisturbed, {_processes(processes)}: {run.describe()}; {run.steps[0]} steps, {operations} file "
                f"operations, {start.startup:.1f} s to start and {start.seconds:.1f} s to end"
            )
        return self.references[key]

    # ---- kills ----

    def kills(self, kind: type[Run], processes: int, kills: int) -> Row:
        """Kill runs, and let each end after a few kills."""
        reference = self.reference(kind, processes)
        done = survived = lost = repeated = made = needed = runs = 0
        same = True
        while done < kills:
            name = f"killed-{kind.__name__}-{processes}-{runs}"
            run = kind(self.folder / name, processes, self.folder / f"{name}.events")
            runs += 1
            killed = 0  # this run, since its last start
            while True:
                spend = done < kills and run.starts < KILLS_PER_RUN
                moment = self._moment(reference, run) if spend else None
                start = run.start(moment=moment)
                run.look()
                if start.status is None:
                    survived += killed
                    killed = 1
                    done += 1
                    where = next((" ".join(e[1:]) for e in reversed(run.events()) if e[0] == "stopped"), "")
                    at = f" ({where})" if moment is not None and moment.after in HALTS else ""
                    say(f"kill {done}/{kills}, {_processes(processes)}: {moment}{at}; {run.describe()}")
                    continue
                if start.status == 0:
                    survived += killed
                else:
                    say(f"it did not resume: {start.output[-3000:]}")
                break
            same_here = start.status == 0 and reference.same(run)
            steps = run.steps
            say(
                f"run {runs} ended after {run.starts} starts: "
                f"{'the same result' if same_here else 'ANOTHER RESULT'}, {steps[0] - steps[1]} of {steps[1]} steps "
                "made again"
            )
            same &= same_here
            lost, repeated = lost + run.lost, repeated + run.repeated
            made, needed = made + steps[0], needed + steps[1]
        self.survived[kind] += survived
        again = (made - needed) / max(needed, 1)
        happened = f"{survived} of {kills} survived (runs: {runs}; steps made again: {again:.0%})"
        what = "SIGKILL" if kind is Search else "SIGKILL of a distillation in stages"
        return Row(f"{what}, {_processes(processes)}", happened, survived == kills, lost, repeated, same)

    def _moment(self, reference: Reference, run: Run) -> Moment:
        """A random moment of what is left to do."""
        left = 1 - run.steps[1] / reference.run.steps[1]
        kind = self.random.choice(run.kills_at)
        if kind == "launch":
            return Moment("launch", self.random.uniform(0, reference.start.startup))
        if kind == "operation":
            return Moment("operation", self.random.randint(1, max(int(left * reference.operations), 12)))
        if kind == "step":
            return Moment("step", self.random.randint(1, max(int(left * reference.run.steps[1]), 1)))
        return Moment("begin", self.random.uniform(0, max(left * reference.start.seconds, 0.5)))

    # ---- the others ----

    def disk(self) -> Row:
        """The disk is full from a random moment on, twice in one search; then there is room again."""
        reference = self.reference(Search, 1)
        name = "disk full (a tmpfs)"
        with small_disk(self.folder / "small_disk") as disk:
            if disk is None:
                return Row(name, "skipped: this user may not mount a tmpfs", True)
            search = self.search("full", 1, disk)
            ballast = disk / "ballast"
            errors = []
            for _ in range(2):
                left = 1 - search.steps[1] / reference.run.steps[1]
                full_from = self.random.uniform(0, 0.7 * left * reference.start.seconds)

                def fill(seconds: float, full_from: float = full_from) -> None:
                    if seconds >= full_from:
                        fill_up(ballast)

                start = search.start(when_begun=fill)
                free = shutil.disk_usage(disk).free
                ballast.unlink(missing_ok=True)
                search.look()
                errors += [start.error] if start.status != 0 else []
                say(f"disk full {full_from:.1f} s after the search began ({free} bytes free): {start.error[:300]}")
            clear = all(error.startswith("error:") and ("disk" in error or "No space" in error) for error in errors)
            end = search.start()
            search.look()
            same = end.status == 0 and reference.same(search)
            happened = f"ended {len(errors)} times with an error that says so" if clear else f"ended with: {errors}"
            happened += "; resumed" if end.status == 0 else f"; did not resume: {end.error}"
            fine = bool(errors) and clear and end.status == 0
            return Row(name, happened, fine, search.lost, search.repeated, same)

    def damaged(self, name: str, damage: Callable[[Path], str]) -> Row:
        """A search is killed in the middle, one of its files is damaged, and it is started again."""
        reference = self.reference(Search, 1)
        search = self.search(name.replace(" ", "_"), 1)
        search.start(moment=Moment("operation", reference.operations // 2))
        search.look()
        what = damage(search.folder)
        end = search.start()
        search.look()
        same = end.status == 0 and reference.same(search)
        said = [line for line in end.output.splitlines() if "damaged" in line]
        say(f"{name}: {what}; {said[0] if said else end.last_line}")
        happened = f"{what}; resumed" if end.status == 0 else f"{what}; did not resume: {end.error}"
        fine = end.status == 0 and bool(search.lines)
        return Row(name, happened, fine, search.lost, search.repeated, same)

    def failing_candidate(self, name: str, option: str, processes: int) -> Row:
        """One candidate fails, and nothing else changes."""
        undisturbed = self.reference(Search, processes).run
        assert isinstance(undisturbed, Search)
        victim = worst_of_last_episode(undisturbed)
        search = self.search(f"{name.replace(' ', '_')}-{processes}", processes)
        end = search.start(option, str(victim))
        failed = [record["number"] for record in search.trials() if record["state"] == "failed"]
        same = end.status == 0 and search.outcome(without=[victim]) == undisturbed.outcome(without=[victim])
        happened = f"trials {failed} recorded as failed, of which {victim} should be"
        said = [line for line in end.output.splitlines() if "is dropped" in line]
        say(f"{name}, {_processes(processes)}: {happened}; {said[0] if said else end.error}")
        if failed == [victim]:
            happened = "recorded as failed, the others as if it were not there"
        fine = end.status == 0 and failed == [victim]
        return Row(f"{name}, {_processes(processes)}", happened, fine, search.lost, search.repeated, same)


def damage_view(folder: Path) -> str:
    """Tear the last line and append what is no text."""
    path = folder / "architectures.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 40] + b"\x00\xff\x00 not JSON\n")
    return f"last of {content.count(10)} lines torn, bytes appended"


def damage_study(folder: Path) -> str:
    """Cut the data base in half."""
    path = folder / "study.db"
    size = path.stat().st_size
    os.truncate(path, size // 2)
    return f"cut from {size} to {size // 2} bytes"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A small disk of its own, or None where this user may not make one."""
    folder.mkdir(parents=True)
    mounted = shutil.which("mount") is not None and (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
        == 0
    )
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def fill_up(ballast: Path) -> None:
    """Write until nothing more fits."""
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass


def say(line: str) -> None:
    """Show progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"


def describe_machine() -> str:
    """CPU, cores and Python, for the reader of a table."""
    info = _text(Path("/proc/cpuinfo")).splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in info if "model name" in line), platform.machine())
    return f"{cpu}, cores: {len(os.sched_getaffinity(0))}, Python {platform.python_version()}"


def main() -> int:
    """Disturb, compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="of either kind; shared by the numbers of processes")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what is killed")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="runs of so many processes")
    parser.add_argument("--checks", nargs="*", choices=CHECKS, default=CHECKS, help="the other disturbances")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="for the run directories; by default a temporary one")
    args = parser.parse_args()
    started = time.monotonic()
    print(f"{describe_machine()}; seed {args.seed}", flush=True)
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        chaos = Chaos(folder.resolve(), args.seed)
        rows = []
        for kind in args.kinds:
            for rank, processes in enumerate(args.processes):
                share = args.kills // len(args.processes) + (rank < args.kills % len(args.processes))
                if share:
                    rows.append(chaos.kills(KINDS[kind], processes, share))
        if "disk" in args.checks:
            rows.append(chaos.disk())
        if "view" in args.checks:
            rows.append(chaos.damaged("tail of architectures.jsonl", damage_view))
        if "study" in args.checks:
            rows.append(chaos.damaged("study.db", damage_study))
        for processes in args.processes:
            if "nan" in args.checks:
                rows.append(chaos.failing_candidate("NaN in a candidate's weights", "--diverges", processes))
            if "memory" in args.checks:
                rows.append(chaos.failing_candidate("out of memory in a candidate", "--too_large", processes))
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes\n")
    print("| disturbance | what happened | lines lost | measured twice | result |")
    print("| --- | --- | --- | --- | --- |")
    print(*rows, sep="\n")
    kills = {name: args.kills if name in args.kinds else 0 for name in KINDS}
    result = {
        "kills": kills["search"],
        "survived": chaos.survived[Search],
        "staged_kills": kills["stages"],
        "staged_survived": chaos.survived[StagedDistillation],
        "lost": sum(row.lost for row in rows),
        "repeated": sum(row.repeated for row in rows),
        "same_result": all(row.same for row in rows),
    }
    print(json.dumps(result))
    return int(not (result["same_result"] and all(row.fine and not row.lost and not row.repeated for row in rows)))


if __name__ == "__main__":
    sys.exit(main())
