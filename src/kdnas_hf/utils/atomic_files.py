"""Files and directories that are whole or as they were before, whatever happens while they are written."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_TOKEN_BYTES = 4
_ANY_TOKEN = "?" * (2 * _TOKEN_BYTES)


def write_atomically(path: str | Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file: it holds its old content until the new one is whole and on the disk.

    The file gets the permissions of any new file, also from libraries that write files only for their owner.

    Args:
        path: The file; its folder exists.
        content: Text, which is encoded as UTF-8; bytes; or a function that writes the file that it is given.
    """
    path = Path(path)
    with _temporary_beside(path) as temporary:
        with temporary.open("xb") as file:
            permissions = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if not callable(content):
                file.write(content.encode() if isinstance(content, str) else content)
        if callable(content):
            content(temporary)
        temporary.chmod(permissions)
        _flush_to_disk(temporary)
        os.replace(temporary, path)


def replace_directory(path: str | Path, build: Callable[[Path], object]) -> None:
    """Make a directory, in the place of one that may be there: it gets its name only when it is whole and on the disk.

    A directory that holds files cannot be renamed over: the old one is moved away first. Killed in between, neither is
    there, so it should be something that can be made again.

    Args:
        path: The directory; its parent exists.
        build: Fills the empty directory of the same name that it is given.
    """
    path = Path(path)
    with _temporary_beside(path) as temporary:
        made = temporary / "new" / path.name
        made.mkdir(parents=True)
        build(made)
        permissions = stat.S_IMODE(temporary.stat().st_mode)
        for inside in [made, *made.rglob("*")]:
            if inside.is_symlink():
                continue  # what it points to is not ours
            inside.chmod(permissions if inside.is_dir() else permissions & 0o666)
            _flush_to_disk(inside)
        old = temporary / "old"
        if path.exists():
            path.rename(old)
        try:
            made.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
        _flush_to_disk(path.parent)


def remove_directory(path: str | Path) -> None:
    """Remove a directory, if it is there: from one moment to the next nothing has its name.

    Removed file by file, what a killed process left of it would pass for the whole, such as a checkpoint that resumes.
    """
    path = Path(path)
    if path.is_dir():
        with _temporary_beside(path) as temporary:
            path.rename(temporary)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left of unfinished files and directories.

    Only for who knows that nobody else is writing there, such as the holder of a lock.

    Args:
        folder: Where they were written.
        name: Of the file or directory that was to be written; by default all of them.
    """
    target = "*" if name is None else glob.escape(name)
    for leftover in folder.glob(f".{target}.{_ANY_TOKEN}.tmp"):
        _remove(leftover)


@contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    """An unused name in the same folder, since a rename across file systems is none; nothing of that name is left.

    The name is another for each writer, so that two that write the same file do not write into each other's.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(_TOKEN_BYTES)}.tmp")
    try:
        yield temporary
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a directory for flushing
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno != errno.EINVAL:  # some file systems flush no directories
            raise
    finally:
        os.close(descriptor)
