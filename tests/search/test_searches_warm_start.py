"""A search that begins with another's results: nothing is measured twice, and misfits are refused."""

import optuna
import pytest
from records import SPACE, record
from tiny_search import tiny_search

from kdnas_hf.search import SearchStudy, make_controller
from kdnas_hf.search.warm_start import read_warm_start

CONFIGURATION = {"teacher": "tiny", "texts": {"train": "x"}, "search": {"reward_alpha": -0.1}, "training": {"seed": 1}}


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def measured_study(folder):
    folder.mkdir()
    study = SearchStudy(folder, make_controller("random", SPACE, 4, seed=0))
    study.keep_configuration(CONFIGURATION)
    for number, architecture in study.candidates(0).items():
        study.record(record(number, architecture, r2=0.1 + 0.01 * number))
    return study


@pytest.mark.parametrize("form", ["{0}", "{0}/study.db", "sqlite:///{0}/study.db"])
def test_results_come_before_the_first_episode_and_are_not_candidates_again(tmp_path, form):
    before = measured_study(tmp_path / "before")
    earlier = read_warm_start(form.format(tmp_path / "before"), SPACE, CONFIGURATION)
    (tmp_path / "now").mkdir()
    study = SearchStudy(tmp_path / "now", make_controller("lstm", SPACE, 5, seed=3))
    study.begin(earlier)
    assert [(r.number, r.episode) for r in study.records()] == [(number, -1) for number in range(4)]
    chosen = study.candidates(0)
    assert list(chosen) == [4, 5, 6, 7, 8]
    assert not {r.architecture for r in before.records()} & set(chosen.values())
    assert study.best()[0].architecture == before.best()[0].architecture
    again = SearchStudy(tmp_path / "now", make_controller("lstm", SPACE, 5, seed=3))
    again.begin(None)
    assert again.candidates(0) == chosen


def test_another_reward_is_refused_another_controller_is_not(tmp_path):
    measured_study(tmp_path / "before")
    now = {**CONFIGURATION, "search": {"reward_alpha": -0.2, "controller": "tpe"}}
    with pytest.raises(ValueError, match=r"search.reward_alpha: -0.1 there, -0.2 now") as caught:
        read_warm_start(str(tmp_path / "before"), SPACE, now)
    assert "controller" not in str(caught.value)
    with pytest.raises(ValueError, match=r"there is no study.db"):
        read_warm_start(str(tmp_path), SPACE, CONFIGURATION)


def test_an_interrupted_take_over_is_finished(tmp_path, monkeypatch):
    measured_study(tmp_path / "before")
    earlier = read_warm_start(str(tmp_path / "before"), SPACE, CONFIGURATION)
    (tmp_path / "now").mkdir()
    study = SearchStudy(tmp_path / "now", make_controller("random", SPACE, 4))
    trial = study._trial_from
    monkeypatch.setattr(study, "_trial_from", lambda r: trial(r) if r.number < 2 else exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        study.begin(earlier)
    with pytest.raises(ValueError, match="2 of 4 architectures were taken over"):
        SearchStudy(tmp_path / "now", make_controller("random", SPACE, 4)).begin(None)
    again = SearchStudy(tmp_path / "now", make_controller("random", SPACE, 4))
    again.begin(earlier)
    assert [r.architecture for r in again.records()] == [r.architecture for r in earlier]


def test_a_search_that_has_begun_takes_over_nothing(tmp_path):
    study = measured_study(tmp_path / "before")
    with pytest.raises(ValueError, match="warm_start: the search .* has begun without"):
        study.begin(study.records())


def test_a_warm_start_trains_only_what_is_new(tmp_path):
    first = tiny_search(tmp_path / "first", num_episodes=1).run()
    second = tiny_search(
        tmp_path / "second", num_episodes=1, controller="tpe", warm_start=str(tmp_path / "first")
    ).run()
    assert [r.architecture for r in second.records[:3]] == [r.architecture for r in first.records]
    assert [r.reward for r in second.records[:3]] == [r.reward for r in first.records]
    assert [r.episode for r in second.records] == [-1] * 3 + [0] * 3
    assert len({r.architecture for r in second.records}) == 6
