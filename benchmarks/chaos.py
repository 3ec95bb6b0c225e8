"""What a search survives: it is killed, its disk fills, its files are damaged, candidates diverge or do not fit.

    python benchmarks/chaos.py --kills 3

The search of `chaos_search.py` runs undisturbed once with each number of processes. Then it is disturbed, started again
until it ends, and compared with the undisturbed one: architectures, losses, rewards, and the student's weights byte by
byte. Kills are SIGKILLs to all processes of a search: one in six while Python starts, two at a random moment of the
search, and three just before a random one of its file operations, so that rare moments get their share.

A line of the ledger counts as lost if it was readable before a restart and is not there, unchanged, afterwards. An
architecture counts as repeated if it stands in the ledger twice, or if a step of its mini-KD is made after the last
checkpoint of that mini-KD.

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
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

SCRIPT = Path(__file__).with_name("chaos_search.py")
CHECKS = ("disk", "ledger", "study", "nan", "memory")
KILLS_PER_SEARCH = 5
TIME_LIMIT = 600  # seconds for one start of a search
SMALL_DISK = "16m"


@dataclass(frozen=True)
class Moment:
    """When a search is killed.

    Attributes:
        after: ``launch`` or ``begin`` (of the search itself), which ``value`` counts seconds from; or ``operation``.
        value: Seconds, or the number of the file operation just before which it is killed.
    """

    after: str
    value: float

    def __str__(self) -> str:
        if self.after == "operation":
            return f"file operation {self.value:.0f}"
        return f"{self.value:.1f} s after {'the launch' if self.after == 'launch' else 'the search began'}"


@dataclass
class Start:
    """What became of one start of a search: ``status`` is None where it was killed."""

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
class Search:
    """A directory in which a search is started as often as it takes.

    Attributes:
        folder: Of the run.
        processes: How many train.
        events_path: The file of the search's events.
        lines: The ledger's lines that were readable at any time, by trial number.
        lost: How many of them were missing, or changed, later.
        starts: How often it was started.
    """

    folder: Path
    processes: int
    events_path: Path
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    lost: int = 0
    starts: int = 0

    def events(self) -> list[list[str]]:
        """What happened so far, over all starts."""
        return [line.split() for line in _text(self.events_path).splitlines()]

    def start(
        self,
        *arguments: str,
        moment: Moment | None = None,
        when_begun: Callable[[float], None] = lambda seconds: None,
    ) -> Start:
        """Start the search, and wait until it ends or kill it.

        Args:
            arguments: For the search.
            moment: When to kill it; None to let it end.
            when_begun: Called again and again with the seconds since the search began.
        """
        self.starts += 1
        before = len(self.events())
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.processes)]
        command = [sys.executable, *(launcher if self.processes > 1 else []), str(SCRIPT)]
        command += [str(self.folder), str(self.events_path), *arguments]
        if moment is not None and moment.after == "operation":
            command += ["--stop_at", f"{moment.value:.0f}"]
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

    def ledger(self) -> list[dict[str, Any]]:
        """The readable lines of the ledger."""
        records = []
        for line in _text(self.folder / "architectures.jsonl").splitlines():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return records

    def check_ledger(self) -> None:
        """Count what earlier looks at the ledger had shown and this one does not."""
        now = {record["number"]: record for record in self.ledger()}
        self.lost += sum(now.get(number) != record for number, record in self.lines.items())
        self.lines |= now

    @property
    def repeated(self) -> int:
        """Architectures that were measured a second time."""
        architectures = [json.dumps(record["architecture"]) for record in self.ledger()]
        whole: set[str] = set()
        again: set[str] = set()
        for event in self.events():
            if event[0] == "whole":
                whole.add(event[1])
            elif event[0] == "step" and event[1] in whole:
                again.add(event[1])
        candidates = [last - first + 1 for first, last in (map(int, pool.split("-")[1:]) for pool in again - _FULL)]
        return len(architectures) - len(set(architectures)) + sum(candidates)

    @property
    def steps(self) -> tuple[int, int]:
        """Optimizer steps that were made, and how many different ones."""
        made = [(event[1], event[2]) for event in self.events() if event[0] == "step"]
        return len(made), len(set(made))

    def outcome(self, without: Sequence[int] = ()) -> tuple[list[dict[str, Any]], str]:
        """What it found, without what depends on the clock: the ledger, and the digest of the student's weights.

        Args:
            without: Trials to leave out.
        """
        records = [{key: value for key, value in record.items() if key != "seconds"} for record in self.ledger()]
        weights = self.folder / "student" / "model.safetensors"
        digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else "no student"
        return [record for record in records if record["number"] not in without], digest


_FULL = {"distillation"}  # the folder of the full distillation, which has no candidates


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _reached(moment: Moment, since_launch: float, since_begin: float | None, events: list[str]) -> bool:
    if moment.after == "operation":
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
    """The undisturbed search with some number of processes."""

    search: Search
    start: Start
    operations: int

    @property
    def outcome(self) -> tuple[list[dict[str, Any]], str]:
        """What the others are compared with."""
        return self.search.outcome()

    def same(self, search: Search, without: Sequence[int] = ()) -> bool:
        """Whether a search found the same, but for some trials."""
        return search.outcome(without) == self.search.outcome(without)

    def worst_of_last_episode(self) -> int:
        """A candidate on which nothing later depends."""
        records = self.search.ledger()
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
        self.references: dict[int, Reference] = {}
        self.survived = 0

    def search(self, name: str, processes: int, disk: Path | None = None) -> Search:
        """A search that was not started yet."""
        return Search((disk or self.folder) / name, processes, self.folder / f"{name}.events")

    def reference(self, processes: int) -> Reference:
        """The undisturbed search."""
        if processes not in self.references:
            search = self.search(f"undisturbed-{processes}", processes)
            start = search.start()
            if start.status != 0:
                raise RuntimeError(f"the undisturbed search failed:\n{start.output[-4000:]}")
            operations = next(int(event[1]) for event in search.events() if event[0] == "operations")
            self.references[processes] = Reference(search, start, operations)
            say(
                f"undisturbed, {_processes(processes)}: {len(search.ledger())} architectures, {search.steps[0]} steps, "
                f"{operations} file operations, {start.startup:.1f} s to start and {start.seconds:.1f} s to search"
            )
        return self.references[processes]

    # ---- kills ----

    def kills(self, processes: int, kills: int) -> Row:
        """Kill searches, and let each end after a few kills."""
        reference = self.reference(processes)
        done = survived = lost = repeated = made = needed = searches = 0
        same = True
        while done < kills:
            search = self.search(f"killed-{processes}-{searches}", processes)
            searches += 1
            killed = 0  # this search, since its last start
            while True:
                spend = done < kills and search.starts < KILLS_PER_SEARCH
                moment = self._moment(reference, search) if spend else None
                start = search.start(moment=moment)
                search.check_ledger()
                if start.status is None:
                    survived += killed
                    killed = 1
                    done += 1
                    where = next((" ".join(e[1:]) for e in reversed(search.events()) if e[0] == "stopped"), "")
                    at = f" ({where})" if moment is not None and moment.after == "operation" else ""
                    say(
                        f"kill {done}/{kills}, {_processes(processes)}: {moment}{at}; "
                        f"{len(search.lines)} architectures measured, {search.lost} lost"
                    )
                    continue
                if start.status == 0:
                    survived += killed
                else:
                    say(f"the search did not resume: {start.output[-3000:]}")
                break
            same_here = start.status == 0 and reference.same(search)
            steps = search.steps
            say(
                f"search {searches} ended after {search.starts} starts: "
                f"{'the same result' if same_here else 'ANOTHER RESULT'}, {steps[0] - steps[1]} of {steps[1]} steps "
                "made again"
            )
            same &= same_here
            lost, repeated = lost + search.lost, repeated + search.repeated
            made, needed = made + steps[0], needed + steps[1]
        self.survived += survived
        again = (made - needed) / max(needed, 1)
        happened = f"{survived} of {kills} survived (searches: {searches}; steps made again: {again:.0%})"
        return Row(f"SIGKILL, {_processes(processes)}", happened, survived == kills, lost, repeated, same)

    def _moment(self, reference: Reference, search: Search) -> Moment:
        """A random moment of what is left to do."""
        left = 1 - search.steps[1] / reference.search.steps[1]
        kind = self.random.choice(["time", "time", "operation", "operation", "operation", "launch"])
        if kind == "launch":
            return Moment("launch", self.random.uniform(0, reference.start.startup))
        if kind == "operation":
            return Moment("operation", self.random.randint(1, max(int(left * reference.operations), 12)))
        return Moment("begin", self.random.uniform(0, max(left * reference.start.seconds, 0.5)))

    # ---- the others ----

    def disk(self) -> Row:
        """The disk is full from a random moment on, twice in one search; then there is room again."""
        reference = self.reference(1)
        name = "disk full (a tmpfs)"
        with small_disk(self.folder / "small_disk") as disk:
            if disk is None:
                return Row(name, "skipped: this user may not mount a tmpfs", True)
            search = self.search("full", 1, disk)
            ballast = disk / "ballast"
            errors = []
            for _ in range(2):
                left = 1 - search.steps[1] / reference.search.steps[1]
                full_from = self.random.uniform(0, 0.7 * left * reference.start.seconds)

                def fill(seconds: float, full_from: float = full_from) -> None:
                    if seconds >= full_from:
                        fill_up(ballast)

                start = search.start(when_begun=fill)
                free = shutil.disk_usage(disk).free
                ballast.unlink(missing_ok=True)
                search.check_ledger()
                errors += [start.error] if start.status != 0 else []
                say(f"disk full {full_from:.1f} s after the search began ({free} bytes free): {start.error[:300]}")
            clear = all(error.startswith("error:") and ("disk" in error or "No space" in error) for error in errors)
            end = search.start()
            search.check_ledger()
            same = end.status == 0 and reference.same(search)
            happened = f"ended {len(errors)} times with an error that says so" if clear else f"ended with: {errors}"
            happened += "; resumed" if end.status == 0 else f"; did not resume: {end.error}"
            fine = bool(errors) and clear and end.status == 0
            return Row(name, happened, fine, search.lost, search.repeated, same)

    def damaged(self, name: str, damage: Callable[[Path], str]) -> Row:
        """A search is killed in the middle, one of its files is damaged, and it is started again."""
        reference = self.reference(1)
        search = self.search(name.replace(" ", "_"), 1)
        search.start(moment=Moment("operation", reference.operations // 2))
        search.check_ledger()
        what = damage(search.folder)
        end = search.start()
        search.check_ledger()
        same = end.status == 0 and reference.same(search)
        said = [line for line in end.output.splitlines() if "damaged" in line]
        say(f"{name}: {what}; {said[0] if said else end.last_line}")
        happened = f"{what}; resumed" if end.status == 0 else f"{what}; did not resume: {end.error}"
        fine = end.status == 0 and bool(search.lines)
        return Row(name, happened, fine, search.lost, search.repeated, same)

    def failing_candidate(self, name: str, option: str) -> Row:
        """One candidate fails, and nothing else changes."""
        reference = self.reference(1)
        victim = reference.worst_of_last_episode()
        search = self.search(name.replace(" ", "_"), 1)
        end = search.start(option, str(victim))
        failed = [record["number"] for record in search.ledger() if record["state"] == "failed"]
        same = end.status == 0 and reference.same(search, without=[victim])
        happened = f"trials {failed} recorded as failed, of which {victim} should be"
        say(f"{name}: {happened}; {end.error}")
        if failed == [victim]:
            happened = "recorded as failed, the others as if it were not there"
        return Row(name, happened, end.status == 0 and failed == [victim], search.lost, search.repeated, same)


def damage_ledger(folder: Path) -> str:
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
    parser.add_argument("--kills", type=int, default=30, help="in all; shared by the numbers of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="searches of so many processes")
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
        for rank, processes in enumerate(args.processes):
            share = args.kills // len(args.processes) + (rank < args.kills % len(args.processes))
            if share:
                rows.append(chaos.kills(processes, share))
        checks: dict[str, Callable[[], Row]] = {
            "disk": chaos.disk,
            "ledger": lambda: chaos.damaged("tail of the ledger", damage_ledger),
            "study": lambda: chaos.damaged("study.db", damage_study),
            "nan": lambda: chaos.failing_candidate("NaN in a candidate's weights", "--diverges"),
            "memory": lambda: chaos.failing_candidate("out of memory in pools and in one candidate", "--too_large"),
        }
        rows += [checks[name]() for name in args.checks]
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes\n")
    print("| disturbance | what happened | lines lost | measured twice | result |")
    print("| --- | --- | --- | --- | --- |")
    print(*rows, sep="\n")
    result = {
        "kills": args.kills,
        "survived": chaos.survived,
        "lost": sum(row.lost for row in rows),
        "repeated": sum(row.repeated for row in rows),
        "same_result": all(row.same for row in rows),
    }
    print(json.dumps(result))
    return int(not (result["same_result"] and all(row.fine and not row.lost and not row.repeated for row in rows)))


if __name__ == "__main__":
    sys.exit(main())
