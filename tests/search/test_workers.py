"""Four workers in processes of their own on one study in PostgreSQL, one of them killed in mid-work."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from tiny_search import tiny_search

from kdnas_hf.search.storage import open_storage
from kdnas_hf.search.trial import KILLED, Trial

SCRIPT = Path(__file__).parent / "tiny_search.py"
NAMES = ("a", "b", "c", "d")


def outcome(folder):
    """What a search measured, without what depends on the clock."""
    trials = [Trial.from_json(line) for line in (folder / "architectures.jsonl").read_text().splitlines()]
    return [(t.number, t.architecture, t.loss, t.quality, t.latency.student_ms, t.reward) for t in trials]


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
def test_four_workers_one_killed_no_candidate_twice_none_lost(postgresql, tmp_path):
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def start(name):
        log = (tmp_path / f"{name}.log").open("ab")
        return subprocess.Popen(
            [sys.executable, SCRIPT, tmp_path / name, "lstm", "0.1", postgresql.url], stdout=log, stderr=log
        )

    workers = {name: start(name) for name in NAMES}
    try:
        # the first that trains dies in mid-work
        wait_until(lambda: any(trained(tmp_path, name) for name in NAMES))
        killed = next(name for name in NAMES if trained(tmp_path, name))
        workers[killed].send_signal(signal.SIGKILL)
        for name, process in workers.items():
            code = process.wait(timeout=400)
            assert code == (-signal.SIGKILL if name == killed else 0), (tmp_path / f"{name}.log").read_text()[-3000:]
    finally:
        for process in workers.values():
            process.kill()
            process.wait()
    study = optuna.load_study(study_name="kdnas", storage=open_storage(postgresql.url))
    handed_over = [trial for trial in study.trials if trial.user_attrs.get("failure") == KILLED]
    assert handed_over
    assert [trial.state for trial in study.trials if trial not in handed_over] == [TrialState.COMPLETE] * 6
    again = [trial for trial in study.trials if "retry_of" in trial.user_attrs]
    assert sorted(str(trial.params) for trial in again) == sorted(str(trial.params) for trial in handed_over)
    survivors = [number for name in NAMES if name != killed for number in trained(tmp_path, name)]
    assert len(survivors) == len(set(survivors))  # nothing twice
    assert {trial.number for trial in study.trials} - set(survivors) <= set(trained(tmp_path, killed))
    distilled = [name for name in NAMES if (tmp_path / name / "student").exists()]
    assert len(distilled) == 1
    assert killed not in distilled
    whole = outcome(tmp_path / distilled[0])
    for name in NAMES:
        assert "secret-word" not in (tmp_path / f"{name}.log").read_text()
        if name != killed:
            assert outcome(tmp_path / name) == whole
            assert "secret-word" not in (tmp_path / name / "config.yaml").read_text()
    # a candidate that was handed over has another number, and the next episode's choices begin at another one
    tiny_search(tmp_path / "alone", num_episodes=2).run()
    alone = {architecture: figures for _, architecture, *figures in outcome(tmp_path / "alone")}
    first = {architecture: figures for _, architecture, *figures in whole if architecture in alone}
    assert set(list(alone)[:3]) <= set(first)
    for architecture, figures in first.items():
        assert figures == pytest.approx(alone[architecture], rel=1e-3)


@pytest.mark.long
def test_a_worker_alone_measures_what_a_search_without_storage_does(tmp_path):
    alone = tiny_search(tmp_path / "alone", num_episodes=2).run()
    worker = tiny_search(tmp_path / "worker", num_episodes=2, storage=f"journal:{tmp_path}/study.log").run()
    assert outcome(tmp_path / "worker") == outcome(tmp_path / "alone")
    assert worker.students[0].quality == pytest.approx(alone.students[0].quality, abs=1e-4)
    late = tiny_search(tmp_path / "late", num_episodes=2, storage=f"journal:{tmp_path}/study.log").run()
    assert late.students == []  # distilled by the first
    assert outcome(tmp_path / "late") == outcome(tmp_path / "worker")
    assert "another worker" in (tmp_path / "late" / "report.md").read_text()
    with pytest.raises(ValueError, match="that of a worker; give the storage"):
        tiny_search(tmp_path / "late", num_episodes=2).run()


def test_a_storage_that_cannot_be_reached_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        tiny_search(tmp_path / "a", storage=f"journal:{tmp_path}/missing/study.log")
    assert list(tmp_path.iterdir()) == []
