"""Append-only files of records, one line of JSON each, that survive being killed while a line is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from transformers.utils import logging

from .atomic_files import write_atomically

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class JsonRecord:
    """A dataclass that a line holds."""

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read a line that `to_json` wrote.

        Raises:
            ValueError: If it is none.
        """
        try:
            return cls._from_values(json.loads(line))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a line of {cls.__name__}: {error}") from error

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> Self:
        return cls(**values)


class Line(Protocol):
    """What a line holds."""

    def to_json(self) -> str:
        """Itself as one line of JSON."""


R = TypeVar("R", bound=Line)


class JsonLines(Generic[R]):
    """Append-only file of records.

    Args:
        path: The file.
        from_json: Reads a line that ``to_json`` wrote, and raises ValueError where it is none.
    """

    def __init__(self, path: str | Path, from_json: Callable[[str], R]) -> None:
        self.path = Path(path)
        self._from_json = from_json

    def read(self) -> list[R]:
        """All records up to the last good line; what follows a damaged line does not count, and a warning says so."""
        if not self.path.exists():
            return []
        records = []
        lines = self.path.read_bytes().split(b"\n")
        for index, line in enumerate(lines):
            if not line:
                continue
            try:
                records.append(self._from_json(line.decode("utf-8")))
            except ValueError:
                logger.warning(
                    f"{self.path}: line {index + 1} of {len(lines)} is damaged; "
                    f"the {len(records)} records before it count."
                )
                break
        return records

    def append(self, record: R) -> None:
        """Write one record; it is on the disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(record.to_json() + "\n")
            file.flush()
            os.fsync(file.fileno())

    def set_to(self, records: Iterable[R]) -> None:
        """Make the file hold exactly these records; it is replaced atomically, and only if it differs."""
        content = "".join(record.to_json() + "\n" for record in records).encode()
        if content == (self.path.read_bytes() if self.path.exists() else b""):
            return
        write_atomically(self.path, content)
