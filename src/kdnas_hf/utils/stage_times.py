"""`StageTimes`: how long each stage of a run took, over all its starts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .atomic_files import write_atomically

TOTAL = "total"


class StageTimes:
    """Wall-clock seconds by stage and in all, over all starts of a run; kept in its directory.

    A run that is killed loses the time since the last stage that ended.

    Args:
        path: The file.
        is_main: Whether this process writes it.
    """

    def __init__(self, path: Path, is_main: bool) -> None:
        self.path = path
        self.is_main = is_main
        self._counted: float | None = None  # until when the total is counted, since `start`
        self.seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def start(self) -> None:
        """Count the total from now on."""
        self._counted = time.monotonic()

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Count the time that is spent inside."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(stage, time.monotonic() - started)

    def add(self, stage: str, seconds: float) -> None:
        """Count some seconds, and in the total the time since it was last counted."""
        if self.is_main:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + seconds, 1)
            self.total()
            write_atomically(self.path, json.dumps(self.seconds, indent=2))

    def total(self) -> float:
        """All seconds until now, without what nobody counted before `start`."""
        if self._counted is not None:
            before, self._counted = self._counted, time.monotonic()
            self.seconds[TOTAL] = round(self.seconds.pop(TOTAL, 0.0) + self._counted - before, 1)  # the last of all
        return self.seconds.get(TOTAL, 0.0)
