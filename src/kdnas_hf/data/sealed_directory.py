"""Directories that are complete or absent: built aside, sealed by a manifest of checksums, and renamed into place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from transformers.utils import logging

from ..utils.atomic_files import remove_leftovers, replace_directory

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
            remove_leftovers(self.path.parent, self.path.name)  # of the holder before, who was killed
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
        def build_and_seal(folder: Path) -> None:
            build(folder)
            files = {
                file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": sha256_of_file(file)}
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            }
            content = {"origin": dict(self.origin), "files": files}
            manifest = json.dumps(content, indent=2, sort_keys=True) + "\n"
            (folder / MANIFEST_NAME).write_text(manifest, encoding="utf-8")

        replace_directory(self.path, build_and_seal)


def sha256_of_file(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
