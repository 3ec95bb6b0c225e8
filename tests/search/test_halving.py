"""Successive halving: who stops, that the others never notice, and that a resumed search decides alike."""

import optuna
import pytest
import torch
from optuna.trial import TrialState
from tiny_search import tiny_search
from transformers import TrainerCallback

from kdnas_hf import SearchArguments
from kdnas_hf.search import SuccessiveHalving, Trial

SHORT = {"num_episodes": 2, "candidates_per_episode": 4, "controller": "bayesian", "confirm": 0}
HALVING = SHORT | {"halving_rungs": [0.3, 0.6]}  # after 3 and 6 of 10 steps


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tiny_search(tmp_path_factory.mktemp("run"), **HALVING).run()


def records(folder):
    return [Trial.from_json(line) for line in (folder / "architectures.jsonl").read_text().splitlines()]


def test_the_better_share_trains_on():
    halving = SuccessiveHalving((0.25, 0.5), keep=0.5)
    assert halving.stopped({"a": 0.3, "b": 0.5, "c": 0.1, "d": 0.4}) == {"a", "c"}
    assert halving.stopped({"a": 0.3, "b": 0.5, "c": 0.1}) == {"c"}
    assert halving.stopped({"a": 0.3}) == set()
    assert halving.stopped({}) == set()
    assert halving.steps(100) == [25, 50]
    assert halving.steps(1) == [1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"halving_rungs": [0.5, 0.25]}, r"halving_rungs=\[0.5, 0.25\] must be shares"),
        ({"halving_rungs": [1.0]}, r"halving_rungs=\[1.0\] must be shares"),
        ({"halving_rungs": [0.5], "halving_keep": 1.0}, "halving_keep=1.0 must be more than 0 and less than 1"),
    ],
)
def test_impossible_rungs_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SearchArguments(**values)


def test_stopped_candidates_cost_less_and_cannot_win(finished):
    for episode in range(2):
        found = [record for record in finished.trials if record.episode == episode]
        assert sorted(record.state for record in found) == ["complete", "stopped", "stopped", "stopped"]
        tokens = sorted(record.tokens for record in found)
        assert tokens[0] == tokens[1] < tokens[2] < tokens[3]
        assert all(record.reward is not None for record in found)
    complete = [record for record in finished.trials if record.state == "complete"]
    assert finished.students[0].architecture in {record.architecture for record in complete}
    trials = optuna.load_study(study_name="kdnas", storage=f"sqlite:///{finished.folder}/study.db").trials
    assert [trial.state for trial in trials].count(TrialState.PRUNED) == 6
    report = (finished.folder / "report.md").read_text()
    assert "stopped" in report


def test_those_that_train_on_never_notice(finished, tmp_path):
    """The first episode has the same candidates: what is measured of one that stays is what it is without halving."""
    tiny_search(tmp_path, **SHORT | {"num_episodes": 1}).run()
    alone = {record.architecture: record for record in records(tmp_path)}
    (stayed,) = [record for record in finished.trials if record.episode == 0 and record.state == "complete"]
    assert (stayed.loss, stayed.reward) == pytest.approx(
        (alone[stayed.architecture].loss, alone[stayed.architecture].reward), rel=1e-5
    )


class Dies(TrainerCallback):
    """Ends the process, so to speak, after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.long
@pytest.mark.parametrize("step", [4, 7])
def test_a_killed_search_stops_the_same_candidates(finished, tmp_path, step):
    search = tiny_search(tmp_path, **HALVING)
    search.callbacks.append(Dies(step))
    with pytest.raises(KeyboardInterrupt):
        search.run()
    tiny_search(tmp_path, **HALVING).run()
    for one, other in zip(records(tmp_path), finished.trials, strict=True):
        assert (one.architecture, one.state, one.tokens) == (other.architecture, other.state, other.tokens)
        assert (one.loss, one.quality, one.reward) == pytest.approx((other.loss, other.quality, other.reward), rel=1e-4)
