"""What a run took: by stage and in all, also where it was killed in between."""

import json

import pytest

from kdnas_hf.utils import stage_times
from kdnas_hf.utils.stage_times import StageTimes


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [100.0]
    monkeypatch.setattr(stage_times.time, "monotonic", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    return passes


def started(path):
    times = StageTimes(path, is_main=True)
    times.start()
    return times


def test_a_killed_run_keeps_the_total_of_what_it_had_finished(tmp_path, clock):
    times = started(tmp_path / "cost.json")
    with times.clock("mini_kd"):
        clock(5)
    clock(2)  # between stages
    with times.clock("latency"):
        clock(1)
    clock(50)  # killed here
    again = started(tmp_path / "cost.json")
    with again.clock("mini_kd"):
        clock(4)
    assert again.seconds == {"mini_kd": 9.0, "latency": 1.0, "total": 12.0}
    assert list(json.loads((tmp_path / "cost.json").read_text())) == ["mini_kd", "latency", "total"]
    clock(3)
    assert again.total() == 15.0


def test_what_went_before_the_start_does_not_count(tmp_path, clock):
    times = StageTimes(tmp_path / "cost.json", is_main=True)
    clock(60)
    times.start()
    times.add("storage", 0.5)
    assert times.seconds == {"storage": 0.5, "total": 0.0}


def test_other_processes_write_nothing(tmp_path, clock):
    times = StageTimes(tmp_path / "cost.json", is_main=False)
    times.start()
    times.add("mini_kd", 3.0)
    assert times.seconds == {}
    assert not (tmp_path / "cost.json").exists()
