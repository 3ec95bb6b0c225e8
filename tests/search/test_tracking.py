"""What a search logs in experiment trackers."""

from types import SimpleNamespace

import accelerate.tracking
import optuna
import pytest
import torch
from accelerate.tracking import GeneralTracker
from records import trial
from tiny_search import tiny_search

from kdnas_hf.export import Budget
from kdnas_hf.search.tracking import SearchTracker


class Listening(GeneralTracker):
    """Keeps what it is told."""

    name = "listening"
    requires_logging_directory = True
    runs = []

    def __init__(self, run_name, logging_dir):
        super().__init__()
        self.logged, self.configuration, self.folder, self.ended = [], None, logging_dir, False
        Listening.runs.append(self)

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        assert all(isinstance(value, bool | int | float | str) for value in values.values())
        self.configuration = values

    def log(self, values, step=None, **kwargs):
        self.logged.append((step, values))

    def finish(self):
        self.ended = True


@pytest.fixture
def runs(monkeypatch):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "listening", Listening)
    monkeypatch.setattr(Listening, "runs", [])
    return Listening.runs


def search(folder, **settings):
    one = tiny_search(folder, **settings)
    one.tracker.__init__(["listening"], folder, one.setting.budget)  # transformers knows no tracker of this name
    return one


def test_trials_are_logged_by_their_number_with_the_best_so_far(tmp_path, runs):
    tracker = SearchTracker(["listening"], tmp_path, Budget(speedup=4.0))
    tracker.begin({"search": {"controller": "lstm", "budgets": None}, "teacher": "t"}, [trial(0, reward=0.2)])
    tracker.record(trial(1, reward=0.1, quality=0.4, episode=2))
    tracker.record(trial(2, reward=0.9, latency=11.0))  # misses the budget
    tracker.record(trial(3, state="failed", failure="too slow", latency=30.0))
    tracker.record(trial(4, state="stopped", reward=0.8))
    tracker.record(trial(5, reward=0.3))
    tracker.on_log(None, SimpleNamespace(global_step=7), None, {"loss": 0.5, "note": "text"})
    tracker.end()
    (run,) = runs
    assert run.configuration == {"search.controller": "lstm", "search.budgets": "None", "teacher": "t"}
    assert [step for step, _ in run.logged] == [2, 3, 4, 5, 6, 13]
    measured = [values for _, values in run.logged[:5]]
    assert [values["search/best_reward"] for values in measured] == [0.2, 0.2, 0.2, 0.2, 0.3]
    assert measured[0] == {
        "search/reward": 0.1, "search/quality": 0.4, "search/loss": 0.6, "search/speedup": 4.0, "search/episode": 2,
        "search/latency_ms": 10.0, "search/parameters": 1000, "search/tokens": 1000, "search/best_reward": 0.2,
    }  # fmt: skip
    assert measured[2].keys() == {
        "search/speedup", "search/episode", "search/latency_ms", "search/parameters", "search/tokens",
        "search/best_reward",
    }  # fmt: skip
    assert run.logged[5][1] == {"distillation/loss": 0.5}
    assert tracker.best.number == 5
    assert run.ended


def test_before_there_is_a_best_none_is_logged(tmp_path, runs):
    tracker = SearchTracker(["listening"], tmp_path, Budget())
    tracker.begin({}, [])
    tracker.record(trial(0, state="failed", failure="out of memory"))
    assert "search/best_reward" not in runs[0].logged[0][1]
    tracker.record(trial(1, reward=0.0))
    assert runs[0].logged[1][1]["search/best_reward"] == 0.0


def test_architectures_and_the_full_distillation_are_one_run(tmp_path, runs):
    result = search(tmp_path, num_episodes=2, logging_steps=5).run()
    (run,) = runs
    measured = [(step, values) for step, values in run.logged if "search/reward" in values]
    assert [step for step, _ in measured] == [1, 2, 3, 4, 5, 6]
    assert [values["search/reward"] for _, values in measured] == [trial.reward for trial in result.trials]
    best = [values["search/best_reward"] for _, values in measured]
    assert best == sorted(best)
    assert best[-1] == max(trial.reward for trial in result.trials)
    assert measured[-1][1]["search/tokens"] == sum(trial.tokens for trial in result.trials)
    distillation = [step for step, values in run.logged if "distillation/loss" in values]
    assert distillation
    assert min(distillation) > 6
    assert distillation == sorted(distillation)
    assert run.configuration["search.mini_kd_epochs"] == 2
    assert run.folder == str(tmp_path / "logs")
    assert run.ended


def test_a_resumed_search_goes_on_and_logs_nothing_twice(tmp_path, runs):
    first = search(tmp_path)

    def dies(trial):
        raise KeyboardInterrupt

    first.tracker.record = dies
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert runs[0].ended
    trials = search(tmp_path).run().trials
    measured = [(step, values) for step, values in runs[1].logged if "search/reward" in values]
    assert [step for step, _ in measured] == list(range(2, len(trials) + 1))
    assert measured[0][1]["search/best_reward"] >= trials[0].reward


def test_an_error_before_the_trackers_run_is_the_error(tmp_path, runs):
    search(tmp_path, num_episodes=1, confirm=0).run()
    other = search(tmp_path, num_episodes=1, confirm=0, mini_kd_epochs=3)
    with pytest.raises(ValueError, match="mini_kd_epochs"):
        other.run()
    assert not runs[1].ended


def test_trackers_that_a_search_does_not_know_are_named(tmp_path, caplog):
    caplog.set_level("WARNING")
    assert SearchTracker(["codecarbon"], tmp_path, Budget()).trackers == []
    assert "report_to: a search has no logs for codecarbon; it has for " in caplog.text
