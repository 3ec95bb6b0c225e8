"""A full disk is told from other errors, whoever found it."""

import contextlib
import sqlite3
from pathlib import Path

import optuna
import pytest
import torch
from safetensors import SafetensorError
from sqlalchemy.exc import OperationalError

from kdnas_hf.utils.run_directory import disk_full_reason

FULL = "/dev/full"  # every write to it fails as on a full disk
needs_a_full_device = pytest.mark.skipif(not Path(FULL).is_char_device(), reason=f"this system has no {FULL}")


@needs_a_full_device
def test_a_write_that_finds_no_room_is_a_full_disk():
    with pytest.raises(OSError, match="No space") as caught, open(FULL, "w", encoding="utf-8") as file:
        file.write("a line")
    assert disk_full_reason(caught.value)


@needs_a_full_device
def test_a_checkpoint_that_finds_no_room_is_a_full_disk():
    with pytest.raises(RuntimeError) as caught:
        torch.save(torch.ones(100_000), FULL)
    assert disk_full_reason(caught.value)


def test_a_study_that_finds_no_room_is_a_full_disk(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "small.db")) as connection:
        connection.execute("PRAGMA max_page_count = 2")
        connection.execute("CREATE TABLE trials (value TEXT)")
        with pytest.raises(sqlite3.OperationalError) as caught:
            connection.execute("INSERT INTO trials VALUES (?)", ["x" * 100_000])
    error = optuna.exceptions.StorageInternalError("an exception is raised during the commit")
    error.__cause__ = OperationalError("INSERT", {}, caught.value)  # as Optuna and SQLAlchemy hand it on
    assert "database or disk is full" in disk_full_reason(error)  # not what wraps it


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (PermissionError(13, "Permission denied"), False),
        (RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"), False),
        (RuntimeError("PytorchStreamReader failed reading zip archive: inline_container.cc:197"), False),
        (sqlite3.OperationalError("database is locked"), False),
    ],
)
def test_other_errors_are_told_apart(error, full):
    assert (disk_full_reason(error) is not None) == full
