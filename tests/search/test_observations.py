"""What controllers make of trials: failures, episodes, what is pending and admitted, and what they believe."""

from random import Random

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from playing import choose, chosen, play
from records import LANDSCAPE as SPACE
from records import trial as measured
from scipy.stats import norm

from kdnas_hf.search import EpsilonSchedule, SearchSpace, make_controller
from kdnas_hf.search.controllers import CONTROLLERS
from kdnas_hf.search.controllers.base import FAILURE, REWARD, Observation, architecture_of, observe
from kdnas_hf.search.controllers.bayesian import GaussianProcess, Surrogate, posterior
from kdnas_hf.search.controllers.optuna_samplers import OptunaSampler
from kdnas_hf.search.trial import DIVERGED, KILLED, OUT_OF_MEMORY, TOO_SLOW
from kdnas_hf.students import Architecture

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


# ---- failures are observations ----

SMALL = SearchSpace.load("small")


def growing(architecture):
    """The larger the better, but those that are wide and deep diverge: a third of the space."""
    if architecture.hidden_size >= 288 and architecture.num_hidden_layers >= 3:
        return DIVERGED
    return 0.4 + 0.05 * (architecture.num_hidden_layers - 2) + 0.0005 * (architecture.hidden_size - 192)


def narrow_memory(architecture):
    """Large feed-forward blocks do not fit in memory, and they would be best."""
    return OUT_OF_MEMORY if architecture.intermediate_size >= 768 else architecture.intermediate_size / 1000


def failing_share(name, tell, seeds=4):
    studies = [search(name, 30, seed, 5, SMALL, EpsilonSchedule(1.0, 0.4), tell=tell) for seed in range(seeds)]
    failed = [sum(trial.state is TrialState.FAIL for trial in study.get_trials(deepcopy=False)) for study in studies]
    return sum(failed) / (30 * seeds)


@pytest.mark.parametrize("tell", [growing, narrow_memory])
def test_the_default_controller_keeps_away_from_what_fails(tell):
    chance = sum(isinstance(tell(one), str) for one in SMALL) / len(SMALL)
    assert chance > 0.3
    assert failing_share("bayesian", tell) <= 0.2


@pytest.mark.parametrize("name", ["lstm", "tpe", "nsga2"])
def test_other_controllers_learn_from_failures_as_well(name):
    chance = sum(isinstance(growing(one), str) for one in SMALL) / len(SMALL)
    assert failing_share(name, growing) < chance - 0.05


def told():
    """A study of which each trial ended in another way."""
    study = optuna.create_study(sampler=make_controller("random", SPACE, 8), direction="maximize")
    endings = [0.5, 0.2, DIVERGED, OUT_OF_MEMORY, TOO_SLOW, KILLED, "stopped", None]
    for trial, ending in zip([choose(study, 0) for _ in endings], endings, strict=True):
        trial.set_constraint("speedup", 2.0 if ending == TOO_SLOW else -1.0)
        trial.report(0.1, 5 if ending == "stopped" else 10)
        if ending == "stopped":
            trial.set_user_attr(REWARD, 0.3)
            study.tell(trial, state=TrialState.PRUNED)
        elif isinstance(ending, str):
            trial.set_user_attr(FAILURE, ending)
            study.tell(trial, state=TrialState.FAIL)
        elif ending is not None:
            study.tell(trial, ending)
    return study


def test_an_observation_is_what_a_trial_says_of_its_architecture():
    study = told()
    trials = study.get_trials(deepcopy=False)
    found = observe([trial for trial in trials if trial.state.is_finished()], [1])
    assert [one.architecture for one in found] == [architecture_of(trials[i]) for i in (0, 1, 2, 3, 4, 6)]
    assert [list(one.values) for one in found] == [[0.5], [0.2], [0.2], [0.2], [0.2], [0.3]]  # failures: the worst
    assert [one.share for one in found] == [1.0, 1.0, 1.0, 1.0, 0.0, 0.5]
    assert [one.failed for one in found] == [False, False, True, True, False, False]
    assert [one.is_feasible for one in found] == [True, True, False, False, False, False]
    assert [one.constraints["speedup"] for one in found] == [-1.0, -1.0, -1.0, -1.0, 2.0, -1.0]


def test_the_worst_of_two_objectives_is_the_least_quality_and_the_most_latency():
    study = optuna.create_study(sampler=make_controller("random", SPACE, 3), directions=["maximize", "minimize"])
    for trial, values in zip([choose(study, 0) for _ in range(3)], ([0.5, 0.1], [0.2, 0.05], None), strict=True):
        if values is None:
            trial.set_user_attr(FAILURE, DIVERGED)
        study.tell(trial, values, state=TrialState.FAIL if values is None else None)
    assert list(observe(study.get_trials(deepcopy=False), [1, -1])[-1].values) == [0.2, 0.1]


def test_optunas_samplers_see_failures_as_complete_and_the_study_itself_stays_as_it_is():
    study = told()
    before = [(trial.state, trial.values, dict(trial.constraints)) for trial in study.get_trials(deepcopy=False)]
    view = OptunaSampler("tpe", SPACE, 8).view(study, 8)
    *trials, running = view.get_trials(deepcopy=False)
    assert running.state is TrialState.RUNNING
    assert running.params == study.get_trials(deepcopy=False)[7].params
    assert [trial.value for trial in trials] == [0.5, 0.2, 0.2, 0.2, 0.2, 0.3]
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert [trial.constraints["fails"] for trial in trials] == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    assert [trial.constraints["speedup"] for trial in trials] == [-1.0, -1.0, -1.0, -1.0, 2.0, -1.0]
    assert [(t.state, t.values, dict(t.constraints)) for t in study.get_trials(deepcopy=False)] == before


@pytest.mark.parametrize("failure", [DIVERGED, OUT_OF_MEMORY])
def test_where_all_has_failed_the_next_candidates_are_far_from_that(failure):
    space = SearchSpace.from_dict(SPACE.as_dict() | {"num_attention_heads": [2], "intermediate_size": [32]})
    sampler = make_controller("bayesian", space, 3)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for trial in [choose(study, 0) for _ in range(3)]:
        trial.set_user_attr(FAILURE, failure)
        study.tell(trial, state=TrialState.FAIL)
    failed = sampler.features(chosen(study))
    choose(study, 1)

    def distance(architecture):
        return ((sampler.features([architecture]) - failed) ** 2).sum(1).min()

    others = set(space) - set(chosen(study)[:3])
    assert distance(chosen(study)[3]) == pytest.approx(max(map(distance, others)))


# ---- episodes, workers and budgets ----


def result_counts(sampler, episodes):
    """Whether the second of two trials sees the result of the first."""
    study = optuna.create_study(sampler=sampler, direction="maximize")
    first, second = (choose(study, episode) for episode in episodes)
    study.tell(first, 1.0)
    _, observed, pending = sampler.known(study, second.number)
    assert len(observed) + len(pending) == 1
    return len(observed) == 1


def test_results_of_earlier_episodes_count_whatever_the_numbers_are():
    assert not result_counts(make_controller("random", SPACE, 1), (0, 0))  # two in an episode of one
    assert result_counts(make_controller("random", SPACE, 9), (0, 1))
    assert result_counts(make_controller("random", SPACE, 9), (-1, 0))  # of another search


def test_asynchronously_every_result_counts_and_every_running_trial_is_pending():
    sampler = make_controller("random", SPACE, 4)
    sampler.asynchronous = True
    assert result_counts(sampler, (0, 0))
    study = optuna.create_study(sampler=sampler, direction="maximize")
    running = [choose(study, episode) for episode in (0, 0, 1)]
    study.tell(running[0], 1.0)
    _, observed, pending = sampler.known(study, 1)
    assert [one.architecture for one in observed] == [chosen(study)[0]]
    assert pending == [chosen(study)[2]]  # also of a higher number, but not itself


@pytest.mark.parametrize("name", ["bayesian", "lstm", "random"])
def test_what_is_pending_is_not_proposed_again_asynchronously(name):
    sampler = make_controller(name, SPACE, 4, epsilon=EpsilonSchedule(0.0, 0.0))
    sampler.asynchronous = True
    study = optuna.create_study(sampler=sampler, direction="maximize")
    running = []
    for number in range(20):
        running.append(choose(study, number // 4))
        if len(running) > 3:
            trial = running.pop(0)
            study.tell(trial, reward_of(chosen(study)[trial.number]))
    assert len(set(chosen(study))) == 20


@pytest.mark.parametrize("name", [*SEARCHING, "depth", "hand"])
def test_what_is_not_admitted_is_never_proposed(name):
    teacher, hand = Architecture(6, 3, 36, 64, "relu"), [Architecture(n, 3, 36, 64) for n in (6, 2, 5, 1)]
    sampler = make_controller(name, SPACE, 3, epsilon=EpsilonSchedule(0.5, 0.5), teacher=teacher, hand=hand)
    sampler.admits = lambda architectures: [one.num_hidden_layers <= 2 for one in architectures]
    study = play(sampler, 9, reward_of)
    assert {one.num_hidden_layers for one in chosen(study)} <= {1, 2}
    if name in ("depth", "hand"):
        assert [one.num_hidden_layers for one in chosen(study)] == [2, 1]  # and then no more


def test_a_space_of_which_nothing_is_admitted_has_nothing_available():
    sampler = make_controller("bayesian", SPACE, 3)
    sampler.admits = lambda architectures: [False] * len(architectures)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    assert sampler.available(study, 0) == []
    assert sampler.promise(study, 0) is None


# ---- what is believed ----


def test_the_promise_is_the_largest_expected_improvement_as_a_share_of_the_best():
    study = search("bayesian", 12)
    sampler = study.sampler
    _, observed, pending = sampler.known(study, 12)
    candidates = [one for one in SPACE if one not in chosen(study)]
    gains = sampler._gains(study, 12, candidates)
    assert pending == []
    assert sampler.promise(study, 12) == pytest.approx(gains.max() / max(one.values[0] for one in observed))
    later = search("bayesian", 60)
    assert 0 <= later.sampler.promise(later, 60) < sampler.promise(study, 12)


def test_nothing_is_promised_before_there_is_something_to_improve():
    study = optuna.create_study(sampler=make_controller("bayesian", SPACE, 4), direction="maximize")
    assert study.sampler.promise(study, 0) is None
    choose(study, 0)
    assert study.sampler.promise(study, 1) is None
    assert all(search(name, 8).sampler.promise(study, 8) is None for name in ("lstm", "random", "tpe"))
    front = optuna.create_study(sampler=study.sampler, directions=["maximize", "minimize"])
    study.tell(0, 0.5)
    assert study.sampler.promise(study, 1) is not None
    assert study.sampler.promise(front, 0) is None


def test_the_posterior_smooths_rewards_and_needs_five_of_them():
    members = SPACE.sample(Random(0), 40)
    noise = [0.05 * (-1) ** number for number in range(40)]
    trials = [measured(n, one, reward=reward_of(one) + noise[n]) for n, one in enumerate(members)]
    trials.append(measured(40, members[0], state="failed"))
    found = posterior(SPACE, trials)
    assert set(found) == set(range(40))
    errors = [abs(found[n][0] - reward_of(one)) for n, one in enumerate(members)]
    assert sum(errors) / 40 < 0.03  # 0.05 as measured
    assert all(0 < deviation < 0.1 for _, deviation in found.values())
    assert posterior(SPACE, trials[:4]) == {n: (pytest.approx(trials[n].reward), 0.0) for n in range(4)}
    assert posterior(SPACE, []) == {}


def line(count, noise=0.0):
    """Points on a line, and noisy values that rise along it."""
    points = np.linspace(0, 1, count)[:, None]
    return points, points[:, 0] + noise * np.random.default_rng(0).standard_normal(count)


def test_believing_the_own_predictions_changes_none_and_makes_them_surer():
    points, values = line(8, noise=0.1)
    process = GaussianProcess.fit(points, values, seed=0)
    new, grid = np.array([[1.3], [1.6]]), np.linspace(-0.5, 2, 20)[:, None]
    believing = process.believing(new)
    assert believing.predict(grid)[0] == pytest.approx(process.predict(grid)[0], abs=1e-4)
    assert (believing.predict(new)[1] < process.predict(new)[1]).all()
    assert (believing.mean, believing.scale) == (process.mean, process.scale)


def observed(values, excesses):
    shape = SPACE.architectures[0]
    return [Observation(shape, 0, [v], {"speedup": e}, 1.0, False) for v, e in zip(values, excesses, strict=True)]


def test_where_nothing_feasible_is_known_the_chance_alone_ranks():
    points, values = line(6)
    missed = values + 0.1  # least by the first, which promises least
    surrogate = Surrogate(points, observed(values, missed), seed=0)
    candidates = np.linspace(0, 1, 7)[:, None]
    mean, deviation = GaussianProcess.fit(points, missed, seed=0).predict(candidates)
    gains = surrogate.gain(candidates, points[:0])
    assert gains == pytest.approx(norm.logcdf(-mean / deviation))
    assert gains.argmax() == 0


def test_what_is_pending_and_probably_misses_a_constraint_is_not_to_be_improved_upon():
    points, values = line(8)
    surrogate = Surrogate(points, observed(values, values - 0.5), seed=0)
    candidate, slow, fast = np.array([[0.47]]), np.array([[0.95]]), np.array([[0.46]])
    chance = np.exp(surrogate._log_chance(candidate))
    beyond_leaders = surrogate._improvement(candidate, slow, surrogate.leaders) * chance
    assert surrogate.gain(candidate, slow) == pytest.approx(beyond_leaders)
    assert surrogate.gain(candidate, fast)[0] < surrogate.gain(candidate, points[:0])[0]
