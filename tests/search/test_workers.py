"""Workers in processes of their own on one study, one of them killed in mid-work."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from test_search import outcome
from tiny_search import tiny_search

from kdnas_hf.search.controllers.base import architecture_of
from kdnas_hf.search.study import is_killed
from kdnas_hf.utils.shared_storage import open_storage

SCRIPT = Path(__file__).parent / "tiny_search.py"


def trained(folder, name):
    """Candidates whose training a worker has begun."""
    path = folder / f"{name}.trained"
    return [int(number) for number in re.findall(r"trial_(\d+)", path.read_text())] if path.exists() else []


def wait_until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the workers did not get there"
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "names"), [("postgresql", "abcd"), ("journal", "ab")])
def test_of_several_workers_one_is_killed_and_nothing_is_lost_or_trained_twice(request, tmp_path, kind, names):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = f"journal:{tmp_path}/study.log" if kind == "journal" else request.getfixturevalue("postgresql").url

    def start(name):
        log = (tmp_path / f"{name}.log").open("ab")
        command = [sys.executable, SCRIPT, tmp_path / name, "lstm", "0.1", storage]
        return subprocess.Popen(command, stdout=log, stderr=log)

    workers = {name: start(name) for name in names}
    try:
        # the first that trains dies in mid-work
        wait_until(lambda: any(trained(tmp_path, name) for name in names))
        killed = next(name for name in names if trained(tmp_path, name))
        workers[killed].send_signal(signal.SIGKILL)
        for name, process in workers.items():
            code = process.wait(timeout=400)
            assert code == (-signal.SIGKILL if name == killed else 0), (tmp_path / f"{name}.log").read_text()[-3000:]
    finally:
        for process in workers.values():
            process.kill()
            process.wait()
    trials = optuna.load_study(study_name="kdnas", storage=open_storage(storage)).trials
    complete = [trial for trial in trials if not is_killed(trial)]
    assert {trial.state.name for trial in complete} == {"COMPLETE"}
    assert len(complete) == len({architecture_of(trial) for trial in complete}) == 6
    assert sorted(trial.user_attrs["episode"] for trial in complete) == [0] * 3 + [1] * 3
    # what the dead one did not finish is tried again
    assert {architecture_of(trial) for trial in trials} - {None} == {architecture_of(trial) for trial in complete}
    survivors = [number for name in names if name != killed for number in trained(tmp_path, name)]
    assert len(survivors) == len({architecture_of(trials[number]) for number in survivors})  # nothing twice
    recorded_by_killed = {trial.number for trial in complete} - set(survivors)
    assert recorded_by_killed <= set(trained(tmp_path, killed))
    distilled = [name for name in names if (tmp_path / name / "student").exists()]
    assert len(distilled) == 1
    assert killed not in distilled
    whole = outcome(tmp_path / distilled[0])
    assert [one[0] for one in whole] == [trial.number for trial in complete]
    for name in names:
        assert "secret-word" not in (tmp_path / f"{name}.log").read_text()
        if name != killed:
            assert outcome(tmp_path / name) == whole
            assert "secret-word" not in (tmp_path / name / "config.yaml").read_text()
    tiny_search(tmp_path / "alone", num_episodes=2).run()
    alone = {one[1]: one[2:] for one in outcome(tmp_path / "alone")}
    first = [architecture_of(trial) for trial in complete if trial.user_attrs["episode"] == 0]
    assert set(first) == {one[1] for one in outcome(tmp_path / "alone")[:3]}
    for _, architecture, *figures in whole:
        if architecture in alone:
            assert figures == pytest.approx(alone[architecture], rel=1e-3)


@pytest.mark.long
def test_a_worker_alone_measures_what_a_search_without_storage_does(tmp_path):
    alone = tiny_search(tmp_path / "alone", num_episodes=2).run()
    worker = tiny_search(tmp_path / "worker", num_episodes=2, storage=f"journal:{tmp_path}/study.log").run()
    assert outcome(tmp_path / "worker") == outcome(tmp_path / "alone")
    assert worker.students[0].quality == pytest.approx(alone.students[0].quality, abs=1e-4)
    late = tiny_search(tmp_path / "late", num_episodes=2, storage=f"journal:{tmp_path}/study.log").run()
    assert list(late.students) == []  # distilled by the first
    assert outcome(tmp_path / "late") == outcome(tmp_path / "worker")
    assert "another worker" in (tmp_path / "late" / "report.md").read_text()
    with pytest.raises(ValueError, match="that of a worker; give the storage"):
        tiny_search(tmp_path / "late", num_episodes=2).run()


def test_a_storage_that_cannot_be_reached_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        tiny_search(tmp_path / "a", storage=f"journal:{tmp_path}/missing/study.log")
    assert list(tmp_path.iterdir()) == []
