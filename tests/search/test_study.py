"""The study of a lone worker: resumed with the same trials wherever it was killed, and restored when damaged."""

import json
import logging
import shutil

import optuna
import pytest
from optuna.trial import TrialState
from records import SPACE, trial
from sqlalchemy import event
from sqlalchemy.engine import Engine

from kdnas_hf.export.budgets import UNLIMITED, Budget
from kdnas_hf.latency import Latency
from kdnas_hf.search import SearchStudy, make_controller
from kdnas_hf.search.trial import DIVERGED, TOO_SLOW, Trial

CONFIGURATION = {"teacher": "tiny", "training": {"learning_rate": 1e-3}}


@pytest.fixture(autouse=True)
def _quick():
    """No test switches the machine off: nothing has to wait for the disk."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def connected(connection, _):
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", connected)
    yield
    event.remove(Engine, "connect", connected)


def open_study(folder, controller="lstm", seed=0, configuration=CONFIGURATION, **kwargs):
    folder.mkdir(exist_ok=True)
    return SearchStudy(folder, make_controller(controller, SPACE, 4, seed=seed), configuration, **kwargs)


def result_of(asked, **values):
    layers = asked.architecture.num_hidden_layers
    values = {"quality": 0.1 * layers, "latency": 4.0 * layers} | values
    return trial(asked.number, asked.architecture, episode=asked.episode, **values)


def measure(study, pool, **values):
    told = []
    for asked in pool:
        if asked.state == "running":
            told.append(result_of(asked, **values))
            for step, quality in told[-1].readings.items():
                study.report(asked.number, step, quality)
            assert study.tell(told[-1])
    return told


def shapes(trials):
    return [(one.number, one.episode, one.architecture) for one in trials]


def die_after(writes, study, monkeypatch):
    """Let a study be killed by the write after so many; how many are left, in a list."""
    left = [writes]

    def dying(call):
        def write(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return call(*args, **kwargs)

        return write

    for name in ("create_new_trial", "set_trial_param", "set_trial_state_values", "set_trial_user_attr"):
        monkeypatch.setattr(study.storage, name, dying(getattr(study.storage, name)))
    return left


def lines(folder):
    return [Trial.from_json(line) for line in (folder / "architectures.jsonl").read_text().splitlines()]


def test_results_are_in_the_study_and_in_the_view_at_once(tmp_path):
    study = open_study(tmp_path)
    told = measure(study, study.ask(4, 1)[:1])
    assert lines(tmp_path) == study.trials() == told
    stored = optuna.load_study(study_name="kdnas", storage=f"sqlite:///{tmp_path}/study.db")
    assert [t.state for t in stored.trials] == [TrialState.COMPLETE] + [TrialState.RUNNING] * 3
    assert stored.trials[0].value == told[0].reward
    assert [one.number for one in study.running()] == [1, 2, 3]


@pytest.mark.parametrize("state", ["complete", "stopped", "failed"])
def test_a_result_is_read_as_it_was_told(tmp_path, state):
    study = open_study(tmp_path)
    failure = DIVERGED if state == "failed" else None
    (told,) = measure(study, study.ask(1, 1), state=state, failure=failure, costs={"flops": 2.5}, machine="this one")
    assert open_study(tmp_path).trials() == [told]
    assert study.machines() == {"this one"}
    assert set(json.loads((tmp_path / "architectures.jsonl").read_text())) == {
        "number", "episode", "architecture", "state", "failure", "latency", "speedup", "costs", "quality", "loss",
        "readings", "tokens", "seconds", "reward", "machine",
    }  # fmt: skip


@pytest.mark.parametrize("count", [4, 3])
@pytest.mark.parametrize("controller", ["lstm", "tpe", "random"])
def test_an_interrupted_search_goes_on_with_the_same_candidates(tmp_path, controller, count):
    whole = open_study(tmp_path / "whole", controller)
    expected = []
    while pool := whole.ask(count, 3):
        expected.append(shapes(pool))
        measure(whole, pool)
    found = []
    while pool := open_study(tmp_path / "cut", controller).ask(count, 3):
        measure(open_study(tmp_path / "cut", controller), pool[:2])  # dies in the middle of the pool
        study = open_study(tmp_path / "cut", controller)
        again = study.ask(count, 3)
        if len(pool) > 2:
            assert shapes(again) == shapes(pool)  # the finished ones too: the checkpoint has them
            assert [one.state for one in again] == ["complete"] * 2 + ["running"] * (len(pool) - 2)
            measure(study, again)
        found.append(shapes(pool))
    assert found == expected
    assert [len(pool) for pool in found] == {4: [4, 4, 4], 3: [3, 1] * 3}[count]
    assert len({architecture for pool in found for _, _, architecture in pool}) == 12


def test_a_pool_is_the_same_wherever_its_choice_was_interrupted(tmp_path, monkeypatch):
    whole = open_study(tmp_path / "whole")
    measure(whole, whole.ask(4, 2))
    shutil.copytree(whole.folder, tmp_path / "begun")
    expected = shapes(whole.ask(4, 2))
    kills = 0
    while True:
        folder = shutil.copytree(tmp_path / "begun", tmp_path / f"cut {kills}")
        study = open_study(folder)
        left = die_after(kills, study, monkeypatch)
        try:
            pool = study.ask(4, 2)
        except KeyboardInterrupt:
            kills += 1
            pool = open_study(folder).ask(4, 2)
        assert shapes(pool) == expected
        if left[0] >= 0:
            break
    assert kills == 4 * (1 + len(SPACE.choices)) + 2  # a trial, its choices; the lease taken and given back


def test_episodes_may_be_added_to_a_search_that_has_ended(tmp_path):
    study = open_study(tmp_path)
    measure(study, study.ask(4, 1))
    assert study.ask(4, 1) == []
    assert [one.episode for one in open_study(tmp_path).ask(4, 2)] == [1] * 4


def test_another_search_in_the_same_study_is_refused(tmp_path):
    open_study(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)output_dir=.*training.learning_rate: 0.001 there, 0.1 now"):
        open_study(tmp_path, configuration={"teacher": "tiny", "training": {"learning_rate": 0.1}})


def test_the_view_is_brought_up_to_date_when_the_study_is_opened(tmp_path, caplog):
    study = open_study(tmp_path)
    measure(study, study.ask(4, 1))
    view = tmp_path / "architectures.jsonl"
    content = view.read_bytes()
    for torn in (content[:-30], content[:-30] + b"\x00\xff no JSON\n", b""):
        view.write_bytes(torn)
        open_study(tmp_path)
        assert view.read_bytes() == content
    view.unlink()
    open_study(tmp_path)
    assert view.read_bytes() == content


@pytest.mark.parametrize("damage", ["garbage", "empty file", "torn", "gone"])
def test_a_damaged_study_is_restored_from_the_view(tmp_path, caplog, damage):
    study = open_study(tmp_path / "run", budget=Budget(speedup=4.0))
    measure(study, study.ask(4, 2))
    before = study.trials()
    expected = shapes(study.ask(4, 2))
    constraints = [t.constraints for t in study.study.trials]
    path = tmp_path / "run" / "study.db"
    content = path.read_bytes()
    study.storage.remove_session()
    path.write_bytes({"garbage": b"no database" * 500, "torn": content[: len(content) // 2]}.get(damage, b""))
    if damage == "gone":
        path.unlink()
    with caplog.at_level(logging.WARNING, logger="kdnas_hf"):
        restored = open_study(tmp_path / "run", budget=Budget(speedup=4.0))
    assert "4 trial(s)" in caplog.text
    assert restored.trials() == before == lines(tmp_path / "run")
    assert [t.constraints for t in restored.study.trials] == constraints[:4]
    if damage in ("garbage", "torn"):  # an empty file is an empty database to SQLite
        assert "is damaged" in caplog.text
        assert (tmp_path / "run" / "study.db.damaged").exists()
    assert shapes(restored.ask(4, 2)) == expected


def test_what_was_running_when_the_study_was_damaged_is_chosen_again(tmp_path):
    study = open_study(tmp_path)
    pool = study.ask(4, 1)
    study.tell(result_of(pool[2], state="failed", failure=TOO_SLOW))  # before the others are trained
    study.storage.remove_session()
    (tmp_path / "study.db").write_bytes(b"no database" * 500)
    restored = open_study(tmp_path)
    assert [one.number for one in restored.trials()] == [2]
    again = restored.ask(4, 1)
    assert [one.number for one in again] == [0, 1, 3]
    assert {one.episode for one in again} == {0}
    assert len({pool[2].architecture, *(one.architecture for one in again)}) == 4
    measure(restored, again)
    assert restored.ask(4, 1) == []


def test_an_older_copy_of_the_study_takes_no_result_away(tmp_path):
    study = open_study(tmp_path, "random")
    pool = study.ask(4, 1)
    shutil.copy(tmp_path / "study.db", tmp_path / "copy.db")
    measure(study, pool[:2])
    study.storage.remove_session()
    (tmp_path / "copy.db").rename(tmp_path / "study.db")
    content = (tmp_path / "architectures.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"holds 2 measured architecture.* that study.db of .* does not have"):
        open_study(tmp_path, "random")
    assert (tmp_path / "architectures.jsonl").read_bytes() == content


def test_a_second_damaged_study_does_not_replace_the_first(tmp_path):
    for content in (b"first damage" * 500, b"second damage" * 500):
        (tmp_path / "study.db").write_bytes(content)
        open_study(tmp_path).storage.remove_session()
    assert (tmp_path / "study.db.damaged").read_bytes() == b"first damage" * 500
    assert (tmp_path / "study.db.damaged.1").read_bytes() == b"second damage" * 500


def test_diverged_candidates_are_recorded_and_not_tried_again(tmp_path):
    study = open_study(tmp_path)
    pool = study.ask(4, 2)
    measure(study, pool, state="failed", failure=DIVERGED)
    assert {t.state for t in study.study.trials} == {TrialState.FAIL}
    assert [one.failure for one in study.trials()] == [DIVERGED] * 4
    assert not {one.architecture for one in study.ask(4, 2)} & {one.architecture for one in pool}


def test_limits_are_constraints_as_soon_as_costs_are_known(tmp_path):
    study = open_study(tmp_path, budget=Budget(speedup=4.0, memory_mb=100.0))
    pool = study.ask(4, 1)
    for asked, latency in zip(pool, [8.0, 9.0, 10.0, 20.0], strict=True):
        study.set_latency(asked.number, Latency(latency, 0.1, 40.0), {"parameters": 1000}, "here")
    assert [t.constraints for t in study.study.trials] == [
        {"speedup": pytest.approx(excess)} for excess in (-1.0, 4 - 40 / 9, 0.0, 2.0)
    ]
    for asked, latency in zip(pool, [8.0, 9.0, 10.0, 20.0], strict=True):
        costs = {"parameters": 1000, "memory_mb": 90.0 + 10 * asked.number}
        failed = {"state": "failed", "failure": TOO_SLOW} if asked.number == 3 else {}
        study.tell(result_of(asked, quality=0.1 * (asked.number + 1), latency=latency, costs=costs, **failed))
    assert [t.constraints["memory_mb"] for t in study.study.trials] == [-10.0, 0.0, 10.0, 20.0]
    assert study.study.best_trial.number == 1
    assert [one.costs["memory_mb"] for one in study.trials()] == [90.0, 100.0, 110.0, 120.0]


def test_latency_is_kept_once_it_is_measured(tmp_path):
    study = open_study(tmp_path)
    assert study.ask(4, 1)[0].latency is None
    study.set_latency(0, Latency(5.0, 0.1, 40.0), {"flops": 3.0}, "here")
    again = open_study(tmp_path).ask(4, 1)
    assert (again[0].latency, again[0].costs, again[0].machine) == (Latency(5.0, 0.1, 40.0), {"flops": 3.0}, "here")
    assert again[1].latency is None


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_what_a_trial_costs_is_known_whole_or_measured_again(tmp_path, monkeypatch, writes):
    study = open_study(tmp_path, budget=Budget(memory_mb=100.0))
    study.ask(1, 1)
    die_after(writes, study, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        study.set_latency(0, Latency(5.0, 0.1, 40.0), {"memory_mb": 300.0}, "here")
    study = open_study(tmp_path, budget=Budget(memory_mb=100.0))
    assert study.ask(1, 1)[0].latency is None
    study.set_latency(0, Latency(6.0, 0.1, 40.0), {"memory_mb": 200.0}, "there")
    assert study.study.trials[0].constraints == {"memory_mb": 100.0}
    (asked,) = study.ask(1, 1)
    assert (asked.latency.student_ms, asked.costs, asked.machine) == (6.0, {"memory_mb": 200.0}, "there")


@pytest.mark.parametrize("writes", range(7))
def test_a_result_that_was_half_told_does_not_show_in_the_next(tmp_path, monkeypatch, writes):
    study = open_study(tmp_path)
    pool = study.ask(2, 1)
    die_after(writes, study, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        study.tell(result_of(pool[0], state="failed", failure=DIVERGED))
    study = open_study(tmp_path)
    again = study.ask(2, 1)
    assert shapes(again) == shapes(pool)
    assert {one.state for one in again} == {"running"}
    assert study.trials() == []
    told = measure(study, again)
    assert told == study.trials() == lines(tmp_path)


@pytest.mark.parametrize("objective", ["reward", "pareto"])
def test_progress_is_reported_once_for_each_step(tmp_path, objective):
    study = open_study(tmp_path, "tpe", objective=objective)
    (asked,) = study.ask(1, 1)
    study.report(0, 10, 0.1)
    study.report(0, 20, 0.2)
    study.report(0, 20, 0.9)  # a resumed mini-KD passes the same step again
    assert study.running()[0].readings == {10: 0.1, 20: 0.2}
    study.tell(result_of(asked, quality=0.5, latency=8.0, reward=0.7))
    study.report(0, 30, 0.3)  # finished: no error
    assert open_study(tmp_path, "tpe", objective=objective).trials()[0].readings == {10: 0.1, 20: 0.2}
    assert study.study.trials[0].values == ([0.7] if objective == "reward" else [0.5, 0.2])


def test_an_exhausted_space_ends_the_candidates(tmp_path):
    study = open_study(tmp_path, "random")
    found = []
    while pool := study.ask(5, 8):
        found += pool
        measure(study, pool)
    assert pool == []
    assert len({one.architecture for one in found}) == len(found) == len(SPACE)


def test_results_of_another_search_come_first_and_once(tmp_path, monkeypatch):
    before = open_study(tmp_path / "before", "random")
    measure(before, before.ask(4, 2))
    measure(before, before.ask(4, 2), state="stopped")
    earlier = before.trials()
    study = open_study(tmp_path / "now", seed=3)
    create, created = study.storage.create_new_trial, []

    def dying(*args, **kwargs):
        if len(created) == 4:  # the lease, and three
            raise KeyboardInterrupt
        created.append(1)
        return create(*args, **kwargs)

    monkeypatch.setattr(study.storage, "create_new_trial", dying)
    with pytest.raises(KeyboardInterrupt):
        study.add(earlier)
    study = open_study(tmp_path / "now", seed=3)
    assert len(study.trials()) == 3
    for _ in range(2):
        study.add(earlier)
    assert [one.episode for one in study.trials()] == [-1] * 8
    assert [(one.architecture, one.reward, one.latency, one.readings) for one in study.trials()] == [
        (one.architecture, one.reward, one.latency, one.readings) for one in earlier
    ]
    assert lines(tmp_path / "now") == study.trials()
    pool = study.ask(4, 1)
    assert [(one.number, one.episode) for one in pool] == [(8, 0), (9, 0), (10, 0), (11, 0)]
    assert not {one.architecture for one in pool} & {one.architecture for one in earlier}


def test_what_is_of_the_whole_search_is_remembered(tmp_path):
    study = open_study(tmp_path)
    assert study.remembered("design") is None
    study.remember("design", {"trial": [1, 2.5]})
    assert study.acquire("full distillation")
    study.finish("full distillation")
    study.close()
    again = open_study(tmp_path)
    assert again.remembered("design") == {"trial": [1, 2.5]}
    assert again.acquire("full distillation")  # a lone worker's are always its own
    assert again.storage_seconds == 0


def test_no_limit_is_no_constraint(tmp_path):
    study = open_study(tmp_path, budget=UNLIMITED)
    measure(study, study.ask(4, 1))
    assert {str(t.constraints) for t in study.study.trials} == {"{}"}
