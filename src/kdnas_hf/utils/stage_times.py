"""`StageTimes`: how long each stage of a run took, over all its starts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .atomic_files import write_atomically


class StageTimes:
    """Wall-clock seconds by stage, over all starts of a run; kept in its directory.

    Args:
        path: The file.
        is_main: Whether this process writes it.
    """

    def __init__(self, path: Path, is_main: bool) -> None:
        self.path = path
        self.is_main = is_main
        self.seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Count the time that is spent inside."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(stage, time.monotonic() - started)

    def add(self, stage: str, seconds: float) -> None:
        """Count some seconds."""
        if self.is_main:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + seconds, 1)
            write_atomically(self.path, json.dumps(self.seconds, indent=2))
