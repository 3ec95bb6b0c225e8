"""What a search logs in experiment trackers."""

import accelerate.tracking
import optuna
import pytest
import torch
from accelerate.tracking import GeneralTracker
from tiny_search import tiny_search


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
    assert run.configuration["choice.controller"] == "lstm"
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
    search(tmp_path, num_episodes=1).run()
    other = search(tmp_path, num_episodes=1, mini_kd_epochs=3)
    with pytest.raises(ValueError, match="mini_kd_epochs"):
        other.run()
    assert not runs[1].ended


def test_trackers_that_a_search_does_not_know_are_named(tmp_path, caplog):
    one = tiny_search(tmp_path)
    caplog.set_level("WARNING")
    one.tracker.__init__(["codecarbon"], tmp_path, one.setting.budget)
    assert "report_to: a search has no logs for codecarbon" in caplog.text
