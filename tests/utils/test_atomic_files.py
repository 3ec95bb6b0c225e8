"""A file or directory is whole or as it was before, and belongs to whom any new file belongs."""

import os
import shutil
import stat

import pytest

from kdnas_hf.utils.atomic_files import remove_directory, remove_leftovers, replace_directory, write_atomically


@pytest.fixture
def umask():
    """Others may read what is written: not what temporary files are made with."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def permissions(path):
    return stat.S_IMODE(path.stat().st_mode)


def write_privately(text):
    def write(path):
        path.unlink(missing_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        path.write_text(text)

    return write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("content", "expected"),
    [("größer\n", "größer\n".encode()), (b"\x00\r\n", b"\x00\r\n"), (write_privately("text"), b"text"), ("", b"")],
    ids=["text", "bytes", "function", "nothing"],
)
@pytest.mark.parametrize("before", [None, "old and longer than the new one"])
def test_a_file_holds_what_was_written_with_ordinary_permissions(tmp_path, umask, content, expected, before):
    path = tmp_path / "results.json"
    if before is not None:
        path.write_text(before)
    write_atomically(path, content)
    assert path.read_bytes() == expected
    assert permissions(path) == 0o644
    assert names(tmp_path) == ["results.json"]


@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, before, error):
    path = tmp_path / "results.json"
    if before is not None:
        path.write_text(before)

    def fail(temporary):
        temporary.write_text("half")
        assert temporary.parent == path.parent  # renames across file systems are none
        assert (path.read_text() if path.exists() else None) == before
        raise error

    with pytest.raises(error):
        write_atomically(path, fail)
    assert names(tmp_path) == ([] if before is None else ["results.json"])
    assert before is None or path.read_text() == before


def test_a_rename_that_fails_leaves_no_temporary(tmp_path):
    (tmp_path / "results.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "results.json", "text")
    assert names(tmp_path) == ["results.json"]


def test_two_writers_of_a_file_do_not_mix(tmp_path):
    path = tmp_path / "results.json"

    def write_while_another_does(temporary):
        temporary.write_text("first ")
        write_atomically(path, "second")
        with temporary.open("a") as file:
            file.write("whole")

    write_atomically(path, write_while_another_does)
    assert path.read_text() == "first whole"


def fill(folder):
    write_privately("weights")(folder / "weights")
    (folder / "inside").mkdir(mode=0o700)
    write_privately("tokens")(folder / "inside" / "tokens")


@pytest.mark.parametrize("before", [False, True])
def test_a_directory_is_replaced_as_a_whole(tmp_path, umask, before):
    path = tmp_path / "student"
    if before:
        path.mkdir()
        (path / "old").write_text("old")

    def build(made):
        assert made.name == "student"
        assert names(path) == ["old"] if before else not path.exists()
        fill(made)

    replace_directory(path, build)
    assert names(path) == ["inside", "weights"]
    assert (path / "inside" / "tokens").read_text() == "tokens"
    assert [permissions(path), permissions(path / "inside")] == [0o755, 0o755]
    assert [permissions(path / "weights"), permissions(path / "inside" / "tokens")] == [0o644, 0o644]
    assert names(tmp_path) == ["student"]


@pytest.mark.parametrize("before", [False, True])
def test_a_failed_build_leaves_the_directory_as_it_was(tmp_path, before):
    path = tmp_path / "student"
    if before:
        path.mkdir()
        (path / "old").write_text("old")

    def fail(made):
        fill(made)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_directory(path, fail)
    assert names(tmp_path) == (["student"] if before else [])
    assert not before or names(path) == ["old"]


def temporary_name(write, path):
    """What a temporary of a file or directory is called."""
    found = []

    def look(made):
        found.extend(name for name in names(path.parent) if name.endswith(".tmp"))

    write(path, look)
    return found[0]


def test_of_a_directory_whose_removal_is_killed_nothing_has_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "pool"
    (folder / "checkpoint-2").mkdir(parents=True)
    (folder / "checkpoint-2" / "state.json").write_text("{}")

    def killed(path, ignore_errors=False):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_directory(folder)
    assert not folder.exists()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []
    remove_directory(folder)  # of what is not there nothing is left


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    folder = tmp_path / temporary_name(replace_directory, tmp_path / "student")
    file = tmp_path / temporary_name(write_atomically, tmp_path / "student.json")
    folder.mkdir()
    (folder / "weights").write_text("half")
    file.write_text("half")
    others = ["student", "student.json", "notes.tmp", ".hidden", ".student.tmp"]
    for name in others[2:]:
        (tmp_path / name).write_text("mine")
    remove_leftovers(tmp_path, "student")
    assert names(tmp_path) == sorted([*others, file.name])
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(others)
