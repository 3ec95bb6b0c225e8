"""Where a study is kept: a file of one worker, or a database or a journal on a shared disk, which many have."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from transformers.utils import logging

logger = logging.get_logger(__name__)

JOURNAL = "journal:"
ERRORS = (SQLAlchemyError, StorageInternalError, OSError)


class StorageError(RuntimeError):
    """A storage that stayed away for longer than a worker waits."""


class _Clock(threading.local):
    """What a thread's calls of shared storages have taken, and for how long it repeats one; in seconds."""

    depth: int = 0
    seconds: float = 0.0
    patience: float = math.inf  # if less than the storage's; then it says nothing


CLOCK = _Clock()


class MendedJournal(JournalFileBackend):
    """Optuna's journal, which removes the half line that a machine left that died while it wrote."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append, after whole lines."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with get_lock_file(self._lock), Path(self._file_path).open("ab+") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            if file.read() not in (b"", b"\n"):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())


def public_storage(url: str) -> str:
    """The address of a storage without its user and password."""
    return re.sub(r"//[^/]*@", "//", re.sub(r"(password=)[^&\s]*", r"\1…", url))


def check_storage(url: str) -> None:
    """Check the form of a storage's address, ``journal:PATH`` or one that SQLAlchemy knows, without calling it.

    Raises:
        ValueError: If it is no address, or that of a file whose folder does not exist.
    """
    if url.startswith(JOURNAL):
        path = Path(url.removeprefix(JOURNAL))
        if path.name and path.parent.is_dir():
            return
        raise ValueError(f"storage={url!r}: there is no folder {str(path.parent)!r}; make it, or name another.")
    try:
        make_url(url).get_dialect()
    except (ArgumentError, NoSuchModuleError):  # their messages may quote the address with its password
        remedy = "write postgresql+psycopg://user@host/database, or journal:/shared/disk/study.log."
        raise ValueError(f"storage={public_storage(url)!r} is no address of a database; {remedy}") from None


def open_file(path: Path) -> BaseStorage:
    """Open an SQLite file; a damaged one is moved aside, with a warning, and a new one is made."""
    try:
        if path.exists():
            with contextlib.closing(sqlite3.connect(path)) as connection:
                (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
    except sqlite3.OperationalError:
        raise  # locked, disk full or read-only: no damage
    except sqlite3.DatabaseError as error:
        count = len(list(path.parent.glob(f"{path.name}.damaged*")))
        aside = path.rename(path.with_name(f"{path.name}.damaged{f'.{count}' if count else ''}"))
        for leftover in path.parent.glob(f"{path.name}-*"):  # journals that belong to the damaged file
            leftover.unlink()
        logger.warning(f"{path} is damaged ({error}); it is kept as {aside.name}.")
    # not by an address with the path: what follows a question mark in it, or a percent sign, is read otherwise
    connect = functools.partial(sqlite3.connect, path.resolve(), check_same_thread=False)
    return get_storage(RDBStorage("sqlite:///by-creator", engine_kwargs={"creator": connect}))


def open_storage(url: str, patience: float = 600.0) -> BaseStorage:
    """Open a storage whose every call is repeated while it is away, for ``patience`` seconds.

    Raises:
        ValueError: If it is no address, its driver is not installed, or it cannot be reached.
    """
    check_storage(url)
    shown = f"storage={public_storage(url)!r}"
    for pause in (0.1, 0.2, 0.4, 0.8, 1.6, None):  # workers that make the tables of a new database at once get errors
        try:
            storage = _open(url)
            break
        except ImportError:
            remedy = "its driver is not installed; for PostgreSQL: pip install 'kdnas_hf[postgresql]'."
            raise ValueError(f"{shown}: {remedy}") from None
        except ERRORS as error:
            if pause is None:
                remedy = "check that the server runs and takes this user, or that the disk can be written."
                raise ValueError(f"{shown} cannot be opened ({_reason(error)}); {remedy}") from None
            time.sleep(pause * (0.5 + random.random()))
    for call in [name for name in dir(BaseStorage) if not name.startswith("_")]:
        setattr(storage, call, _repeated(getattr(storage, call), shown, patience))
    return storage


def _open(url: str) -> BaseStorage:
    if url.startswith(JOURNAL):
        return JournalStorage(MendedJournal(url.removeprefix(JOURNAL)))
    url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
    connect = {"connect_timeout": 10} if url.startswith("postgresql+psycopg:") else {}
    # a pooled connection may be to a server that was restarted
    return get_storage(RDBStorage(url, engine_kwargs={"pool_pre_ping": True, "connect_args": connect}))


def _repeated(call: Callable[..., Any], shown: str, patience: float) -> Callable[..., Any]:
    """A call of a storage that waits while that is away, and counts the time."""

    @functools.wraps(call)
    def repeated(*args: Any, **kwargs: Any) -> Any:
        started, pause, limit = time.monotonic(), 0.5, min(patience, CLOCK.patience)
        CLOCK.depth += 1
        try:
            while True:
                try:
                    return call(*args, **kwargs)
                except ERRORS as error:
                    if CLOCK.depth > 1 or not _is_away(error):
                        raise
                    if time.monotonic() - started > limit:
                        remedy = "start this worker again when it is back, with the same arguments."
                        away = f"{shown} has been away for {limit:.0f} seconds ({_reason(error)})"
                        raise StorageError(f"{away}; {remedy}") from None
                    if pause == 0.5 and CLOCK.patience == math.inf:
                        logger.warning(f"{shown} does not answer ({_reason(error)}); trying again.")
                    time.sleep(pause * (0.5 + random.random() / 2))
                    pause = min(pause * 2, 30.0)
        finally:
            CLOCK.depth -= 1
            if CLOCK.depth == 0:
                CLOCK.seconds += time.monotonic() - started

    return repeated


def _cause(error: BaseException) -> BaseException:
    return error.__cause__ or error if isinstance(error, StorageInternalError) else error


def _is_away(error: BaseException) -> bool:
    """Whether a call may succeed later; not so if what it says is wrong."""
    cause, names = _cause(error), ("OperationalError", "InterfaceError", "InternalError")
    return isinstance(cause, OSError) or (isinstance(cause, DBAPIError) and type(cause).__name__ in names)


def _reason(error: BaseException) -> str:
    cause = _cause(error)
    return public_storage((str(getattr(cause, "orig", cause)).strip() or type(cause).__name__).splitlines()[0])
