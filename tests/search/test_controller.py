"""Controllers: only members of the space, none twice, the same again after an interruption, and better than chance."""

import optuna
import pytest
from optuna.trial import TrialState
from playing import choose, chosen, play
from records import LANDSCAPE as SPACE

from kdnas_hf.search import EpsilonSchedule, SearchSpace, make_controller
from kdnas_hf.search.controllers import CONTROLLERS
from kdnas_hf.search.controllers.base import FAILURE, REWARD, architecture_of
from kdnas_hf.search.controllers.lstm import LSTMSampler
from kdnas_hf.search.trial import DIVERGED, TOO_SLOW

pytestmark = pytest.mark.long  # depends on no line of transformers

SEARCHING = [name for name in CONTROLLERS if name not in ("depth", "hand")]


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def reward_of(architecture):
    """A landscape with one summit: 5 layers, 36 dimensions, relu."""
    distance = abs(architecture.num_hidden_layers - 5) + abs(architecture.hidden_size - 36) / 12
    return 1.0 - 0.1 * distance - (0.1 if architecture.hidden_act == "gelu" else 0)


def search(name, trials, seed=0, per_episode=4, space=SPACE, epsilon=None, study=None, tell=reward_of):
    return play(make_controller(name, space, per_episode, seed=seed, epsilon=epsilon), trials, tell, study)


@pytest.mark.parametrize("name", SEARCHING)
def test_candidates_are_distinct_members_of_the_space(name):
    architectures = chosen(search(name, 16))
    assert all(architecture in SPACE for architecture in architectures)
    assert len(set(architectures)) == 16


@pytest.mark.parametrize("name", SEARCHING)
def test_the_same_seed_chooses_the_same_also_after_an_interruption(name):
    whole = chosen(search(name, 12, seed=7))
    interrupted = search(name, 8, seed=7)
    resumed = chosen(search(name, 12, seed=7, study=interrupted))  # a new sampler, as in a new process
    assert resumed == whole
    assert chosen(search(name, 12, seed=8)) != whole


@pytest.mark.parametrize("name", SEARCHING)
def test_a_space_can_be_exhausted(name):
    space = SearchSpace.from_dict(
        {"num_hidden_layers": [1, 2], "num_attention_heads": [2], "hidden_size": [8], "intermediate_size": [8, 16]}
    )
    study = search(name, 4, per_episode=2, space=space)
    assert set(chosen(study)) == set(space)
    assert study.sampler.available(study, 4) == []
    with pytest.raises(RuntimeError, match="all 4 architectures of the space are taken"):
        study.ask().suggest_categorical("num_hidden_layers", [1, 2])


@pytest.mark.parametrize("name", ["bayesian", "lstm"])
def test_our_controllers_beat_chance(name):
    """Mean of the best reward over seeds: the summit is 1.0, and one in 24 architectures sits on it."""
    found = {"random": [], name: []}
    for seed in range(5):
        for controller, values in found.items():
            values.append(search(controller, 24, seed=seed, epsilon=EpsilonSchedule(1.0, 0.3)).best_value)
    assert sum(found[name]) > sum(found["random"])


def test_a_gaussian_process_finds_the_summit_of_a_smooth_landscape():
    for seed in range(3):
        assert search("bayesian", 24, seed=seed).best_value == pytest.approx(1.0)


def test_the_first_episode_of_bayesian_optimisation_is_spread_out():
    first = chosen(search("bayesian", 4, per_episode=4))
    assert {architecture.num_hidden_layers for architecture in first} >= {1, 6}
    assert len({architecture.hidden_act for architecture in first}) == 2


def test_what_misses_a_constraint_is_not_proposed_by_bayesian_optimisation():
    sampler = make_controller("bayesian", SPACE, 4)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for episode in range(6):
        trials = [choose(study, episode) for _ in range(4)]
        for trial in trials:
            trial.set_constraint("speedup", trial.params["num_hidden_layers"] - 3.5)
        for trial in trials:
            study.tell(trial, float(trial.params["num_hidden_layers"]))
    last = [architecture.num_hidden_layers for architecture in chosen(study)[12:]]
    assert sum(layers > 3 for layers in last) <= 3
    assert last.count(3) >= 6


def test_without_chance_the_best_predicted_are_chosen():
    study = search("lstm", 24, epsilon=EpsilonSchedule(0.0, 0.0))
    last = [trial.value for trial in study.get_trials(deepcopy=False)[-4:]]
    first = [trial.value for trial in study.get_trials(deepcopy=False)[:4]]
    assert sum(last) > sum(first)


def test_epsilon_falls_with_the_episodes():
    schedule = EpsilonSchedule(1.0, 0.05)
    assert [schedule(0), schedule(1), schedule(10)] == pytest.approx([1.0, 0.95, 0.5])
    assert schedule(30) == 0
    for wrong in ((1.5, 0.1), (1.0, -0.1)):
        with pytest.raises(ValueError, match="must be between 0 and 1"):
            EpsilonSchedule(*wrong)


def test_an_architecture_that_misses_a_constraint_does_not_lead():
    sampler = LSTMSampler(SPACE, 8, seed=0, epsilon=EpsilonSchedule(0.0, 0.0))
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for trial in [choose(study, 0) for _ in range(8)]:
        layers = trial.params["num_hidden_layers"]
        trial.set_constraint("speedup", 1.0 if layers > 3 else -1.0)
        study.tell(trial, float(layers))
    slow = [one.params["num_hidden_layers"] > 3 for one in [choose(study, 1) for _ in range(8)]]
    assert sum(slow) <= 2


def test_unknown_controllers_and_those_that_lack_something_are_refused():
    with pytest.raises(ValueError, match="Choose from bayesian, lstm, tpe, gp, nsga2, random, depth, hand"):
        make_controller("grid", SPACE, 4)
    for name in ("depth", "hand"):
        with pytest.raises(ValueError, match="there is nothing to propose: give architectures"):
            make_controller(name, SPACE, 4)


def test_bayesian_optimisation_learns_from_candidates_that_were_stopped():
    """Mean of the rewards that the second episode proposes, with and without what the stopped ones promised."""

    def second_episode(seed, tells):
        study = optuna.create_study(sampler=make_controller("bayesian", SPACE, 12, seed=seed), direction="maximize")
        for number, trial in enumerate([choose(study, 0) for _ in range(12)]):
            reward = reward_of(architecture_of(study.get_trials(deepcopy=False)[number]))
            stopped = number % 6 > 0
            trial.report(0.0, 5 if stopped else 10)
            if stopped and tells:
                trial.set_user_attr(REWARD, reward - 0.1)  # it has still to learn
            study.tell(trial, None if stopped else reward, state=TrialState.PRUNED if stopped else TrialState.COMPLETE)
        for _ in range(12):
            choose(study, 1)
        return sum(reward_of(architecture) for architecture in chosen(study)[12:]) / 12

    seeds = range(4)
    assert sum(second_episode(s, True) for s in seeds) > sum(second_episode(s, False) for s in seeds) + 0.1


@pytest.mark.parametrize("name", SEARCHING)
def test_a_search_in_which_all_have_failed_goes_on(name):
    study = search(name, 8, tell=lambda architecture: DIVERGED)
    assert len(set(chosen(study)) - {None}) == 8


@pytest.mark.parametrize("name", ["bayesian", "lstm"])
def test_what_was_too_slow_informs_the_constraint(name):
    sampler = make_controller(name, SPACE, 4, epsilon=EpsilonSchedule(0.0, 0.0))
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for episode in range(5):
        for trial in [choose(study, episode) for _ in range(4)]:
            layers = trial.params["num_hidden_layers"]
            trial.set_constraint("speedup", layers - 3.5)
            if layers > 3:
                trial.set_user_attr(FAILURE, TOO_SLOW)
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, float(layers))
    assert sum(architecture.num_hidden_layers > 3 for architecture in chosen(study)[8:]) <= 3
