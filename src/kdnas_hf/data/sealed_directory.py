"""Directories that are complete or absent: built aside, sealed by a manifest of checksums, and renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from transformers.utils import logging

logger = logging.get_logger(__name__)

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class SealedDirectory:
    """A directory in a cache whose files are what `build` wrote, or which is not there.

    Building happens in a temporary directory beside `path`. The manifest (size and SHA-256 of every file, and `origin`)
    is written last, everything is flushed to the disk, and only then is the directory renamed to `path`. A lock beside
    it lets one process build while the others wait for the result; the lock is released when its holder dies.

    Attributes:
        path: Where the finished directory is.
        origin: What the content depends on, such as a converter's version; a directory of another origin is rebuilt.
    """

    path: Path
    origin: Mapping[str, str]

    def ensure(self, build: Callable[[Path], None], verify: bool = True) -> Path:
        """Returns the directory; builds it first if it is missing, unfinished, damaged or of another origin.

        Args:
            build: Writes the content into the empty directory that it is given.
            verify: Compare the checksum of every file of an existing directory, and not only its size.

        Returns:
            `path`.
        """
        if self.problem(verify) is None:
            return self.path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.parent / f"{self.path.name}.lock"):
            problem = self.problem(verify)
            if problem is None:  # another process built it while this one waited
                return self.path
            self._remove_leftovers()
            if self.path.exists():
                logger.warning(f"{self.path} cannot be used and is built anew: {problem}.")
            self._build(build)
        return self.path

    def problem(self, verify: bool = True) -> str | None:
        """Says why the directory cannot be used, or returns `None` if it can."""
        try:
            manifest = json.loads((self.path / MANIFEST_NAME).read_text(encoding="utf-8"))
            origin, files = manifest["origin"], manifest["files"]
        except (OSError, ValueError, KeyError, TypeError):
            return "it has no readable manifest"
        if origin != dict(self.origin):
            return f"it was made from {origin}, not from {dict(self.origin)}"
        for name, expected in files.items():
            file = self.path / name
            size = file.stat().st_size if file.is_file() else None
            if size != expected["size"]:
                return f"{name} has {size} bytes instead of {expected['size']}"
            if verify and sha256_of_file(file) != expected["sha256"]:
                return f"the checksum of {name} is wrong"
        return None

    def _build(self, build: Callable[[Path], None]) -> None:
        building = Path(tempfile.mkdtemp(prefix=self._temporary_prefix, dir=self.path.parent))
        try:
            building.chmod(0o755)
            build(building)
            files = {}
            for file in sorted(building.rglob("*")):
                if file.is_file():
                    file.chmod(0o644)  # some writers leave files that only their owner may read
                    _flush_to_disk(file)
                    files[file.relative_to(building).as_posix()] = {
                        "size": file.stat().st_size,
                        "sha256": sha256_of_file(file),
                    }
            manifest = building / MANIFEST_NAME
            content = {"origin": dict(self.origin), "files": files}
            manifest.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            _flush_to_disk(manifest)
            if self.path.exists():
                # A directory that holds files cannot be renamed over, so the unusable one is moved away first.
                self.path.rename(Path(tempfile.mkdtemp(prefix=self._temporary_prefix, dir=self.path.parent)) / "old")
            building.rename(self.path)
            _flush_to_disk(self.path.parent)
        finally:
            self._remove_leftovers()

    @property
    def _temporary_prefix(self) -> str:
        return f".{self.path.name}.building-"

    def _remove_leftovers(self) -> None:
        """Removes what interrupted builds left; only the holder of the lock may, since nobody else is building then."""
        for leftover in self.path.parent.glob(f"{self._temporary_prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)


def sha256_of_file(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a directory for flushing
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
