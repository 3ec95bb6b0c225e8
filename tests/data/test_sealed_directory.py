"""A sealed directory is complete or is built anew, whatever interrupted or damaged it, and whoever builds beside."""

import threading

import pytest

from kdnas_hf.data.sealed_directory import MANIFEST_NAME, SealedDirectory


class Builder:
    def __init__(self, content="content", fail=False):
        self.content, self.fail, self.calls = content, fail, 0

    def __call__(self, directory):
        self.calls += 1
        (directory / "weights").write_text(self.content)
        if self.fail:
            raise KeyboardInterrupt
        (directory / "config").write_text("config")


@pytest.fixture
def sealed(tmp_path):
    return SealedDirectory(tmp_path / "cache" / "teacher", {"version": "1"})


def test_built_once_and_then_found(sealed):
    build = Builder()
    assert sealed.ensure(build) == sealed.ensure(build) == sealed.path
    assert build.calls == 1
    assert (sealed.path / "weights").read_text() == "content"


def test_interrupted_build_leaves_nothing_and_is_redone(sealed):
    with pytest.raises(KeyboardInterrupt):
        sealed.ensure(Builder(fail=True))
    assert not sealed.path.exists()
    sealed.ensure(Builder())
    assert (sealed.path / "config").exists()


def test_leftovers_of_a_killed_build_are_removed_and_not_used(sealed):
    leftover = sealed.path.parent / f".{sealed.path.name}.01234567.tmp"
    leftover.mkdir(parents=True)
    (leftover / "weights").write_text("half")
    sealed.ensure(Builder())
    assert not leftover.exists()
    assert (sealed.path / "weights").read_text() == "content"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / MANIFEST_NAME).unlink(), "manifest"),
        (lambda path: (path / MANIFEST_NAME).write_text('{"files": {'), "manifest"),
        (lambda path: (path / "weights").write_text("cont"), "weights has 4 bytes instead of 7"),
        (lambda path: (path / "weights").unlink(), "weights has None bytes"),
        (lambda path: (path / "weights").write_text("CONTENT"), "checksum of weights"),
    ],
)
def test_damaged_directory_is_detected_and_rebuilt(sealed, damage, message):
    sealed.ensure(Builder())
    damage(sealed.path)
    assert message in sealed.problem()
    again = Builder()
    sealed.ensure(again)
    assert again.calls == 1
    assert (sealed.path / "weights").read_text() == "content"
    assert [path.name for path in sealed.path.parent.iterdir() if path.name.startswith(".")] == []


def test_sizes_alone_are_compared_without_verification(sealed):
    sealed.ensure(Builder())
    (sealed.path / "weights").write_text("CONTENT")
    assert sealed.problem(verify=False) is None


def test_another_origin_is_rebuilt(sealed):
    sealed.ensure(Builder("old"))
    newer = SealedDirectory(sealed.path, {"version": "2"})
    newer.ensure(Builder("new"))
    assert (newer.path / "weights").read_text() == "new"


def test_concurrent_calls_build_once(sealed):
    build = Builder()
    barrier = threading.Barrier(4)

    def ensure():
        barrier.wait()
        sealed.ensure(build)

    threads = [threading.Thread(target=ensure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert build.calls == 1
    assert sealed.problem() is None
