"""The study and its ledger: kept in step, resumed with the same candidates, rebuilt when damaged."""

import logging

import optuna
import pytest
from optuna.trial import TrialState
from records import SPACE, record

from kdnas_hf.search import LatencyBudget, SearchStudy, make_controller
from kdnas_hf.search.budgets import UNLIMITED


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def open_study(folder, controller="lstm", seed=0, budget=UNLIMITED):
    return SearchStudy(folder, make_controller(controller, SPACE, 4, seed=seed), budget)


def measure(study, candidates, **kwargs):
    for number, architecture in candidates.items():
        if not study.is_finished(number):
            r2 = 0.1 * architecture.num_hidden_layers
            study.record(record(number, architecture, r2=r2, latency=4.0 * architecture.num_hidden_layers, **kwargs))


def test_results_are_in_the_study_and_in_the_ledger_at_once(tmp_path):
    study = open_study(tmp_path)
    candidates = study.candidates(0)
    measure(study, dict(list(candidates.items())[:1]))
    assert [r.number for r in study.ledger.read()] == [0]
    stored = optuna.load_study(study_name="kdnas", storage=f"sqlite:///{tmp_path}/study.db")
    assert [t.state for t in stored.trials] == [TrialState.COMPLETE] + [TrialState.RUNNING] * 3
    assert stored.trials[0].value == study.ledger.read()[0].reward


@pytest.mark.parametrize("controller", ["lstm", "tpe", "random"])
def test_an_interrupted_search_goes_on_with_the_same_candidates(tmp_path, controller):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = open_study(tmp_path / "whole", controller)
    for episode in range(3):
        measure(whole, whole.candidates(episode))
    for episode in range(3):
        study = open_study(tmp_path / "cut", controller)
        measure(study, dict(list(study.candidates(episode).items())[:2]))  # dies in mid-episode
        study = open_study(tmp_path / "cut", controller)
        measure(study, study.candidates(episode))
    assert [r.architecture for r in study.records()] == [r.architecture for r in whole.records()]
    assert len({r.architecture for r in study.records()}) == 12


def test_a_trial_that_died_before_it_was_chosen_is_chosen_again(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    expected = open_study(tmp_path / "whole").candidates(0)
    study = open_study(tmp_path / "cut")
    study.study.ask()  # created, and nothing more
    assert open_study(tmp_path / "cut").candidates(0) == expected


def test_what_only_the_ledger_has_is_told_to_the_study(tmp_path):
    study = open_study(tmp_path)
    candidates = study.candidates(0)
    study.ledger.append(record(0, candidates[0], r2=0.2))
    reopened = open_study(tmp_path)
    assert reopened.is_finished(0)
    assert reopened.study.trials[0].value == 0.2


def test_what_only_the_study_has_is_written_to_the_ledger(tmp_path):
    study = open_study(tmp_path)
    measure(study, study.candidates(0))
    lines = study.ledger.path.read_text()
    study.ledger.path.write_text(lines[: len(lines) - 30])  # torn in the last line
    open_study(tmp_path)
    assert study.ledger.path.read_text() == lines
    study.ledger.path.unlink()
    open_study(tmp_path)
    assert study.ledger.path.read_text() == lines


@pytest.mark.parametrize("damage", ["garbage", "empty file", "torn"])
def test_a_damaged_study_is_rebuilt_from_the_ledger(tmp_path, caplog, damage):
    study = open_study(tmp_path)
    measure(study, study.candidates(0))
    expected = study.records()
    path = tmp_path / "study.db"
    content = path.read_bytes()
    study.study._storage.remove_session()
    path.write_bytes({"garbage": b"no database" * 500, "empty file": b"", "torn": content[: len(content) // 2]}[damage])
    with caplog.at_level(logging.WARNING, logger="kdnas_hf"):
        rebuilt = open_study(tmp_path)
    assert rebuilt.records() == expected
    if damage != "empty file":  # an empty file is an empty database to SQLite
        assert "is damaged" in caplog.text
        assert (tmp_path / "study.db.damaged").exists()
    following = rebuilt.candidates(1)
    assert list(following) == [4, 5, 6, 7]
    assert not set(following.values()) & {r.architecture for r in expected}


def test_diverged_candidates_are_recorded_and_not_tried_again(tmp_path):
    study = open_study(tmp_path)
    candidates = study.candidates(0)
    for number, architecture in candidates.items():
        study.record(record(number, architecture, state="failed"))
    assert {t.state for t in study.study.trials} == {TrialState.FAIL}
    assert [r.state for r in study.records()] == ["failed"] * 4
    assert not set(study.candidates(1).values()) & set(candidates.values())
    assert study.best() == []


def test_the_constraint_keeps_slow_architectures_from_winning(tmp_path):
    study = open_study(tmp_path, budget=LatencyBudget(4.0))
    candidates = study.candidates(0)
    for number, architecture in candidates.items():
        study.record(record(number, architecture, r2=0.1 * (number + 1), latency=[8, 9, 10, 20][number]))
    assert [r.number for r in study.best(4)] == [2, 1, 0]
    assert study.study.best_trial.number == 2


def test_latency_is_kept_once_it_is_measured(tmp_path):
    study = open_study(tmp_path)
    study.candidates(0)
    assert study.latency(0) is None
    study.set_latency(0, (5.0, 0.1, 40.0))
    assert open_study(tmp_path).latency(0) == (5.0, 0.1, 40.0)


def test_progress_is_reported_once_for_each_step(tmp_path):
    study = open_study(tmp_path)
    study.candidates(0)
    study.report(0, 0.1, step=10)
    study.report(0, 0.2, step=20)
    study.report(0, 0.9, step=20)  # a resumed mini-KD passes the same step again
    assert study.study.trials[0].intermediate_values == {10: 0.1, 20: 0.2}


def test_an_exhausted_space_ends_the_candidates(tmp_path):
    study = open_study(tmp_path)
    found = [study.candidates(episode) for episode in range(8)]
    assert sum(len(candidates) for candidates in found) == len(SPACE)
    assert found[-1] == {}
