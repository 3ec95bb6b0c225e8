"""Controllers: only members of the space, none twice, the same again after an interruption, and better than chance."""

import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import TrialState
from records import LANDSCAPE as SPACE

from kdnas_hf import Architecture
from kdnas_hf.search import CONTROLLERS, EpsilonSchedule, SearchSpace, make_controller
from kdnas_hf.search.controllers import (
    EPISODE,
    FAILURE,
    REWARD,
    LSTMSampler,
    architecture_of,
    load_hand_list,
    posterior,
)
from kdnas_hf.search.trial import COMPLETE, DIVERGED, KILLED, OUT_OF_MEMORY, TOO_SLOW, Trial

pytestmark = pytest.mark.long  # depends on no line of transformers

SEARCHING = [name for name in CONTROLLERS if name not in ("depth", "hand")]


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def reward_of(architecture):
    """A landscape with one summit: 5 layers, 36 dimensions, relu."""
    distance = abs(architecture.num_hidden_layers - 5) + abs(architecture.hidden_size - 36) / 12
    return 1.0 - 0.1 * distance - (0.1 if architecture.hidden_act == "gelu" else 0)


def play(name, trials, seed=0, per_episode=4, space=SPACE, epsilon=None, study=None):
    """Ask and tell in episodes: an episode's results are told after all of its candidates are chosen."""
    sampler = make_controller(name, space, per_episode, seed=seed, epsilon=epsilon)
    study = study or optuna.create_study(sampler=sampler, direction="maximize")
    study.sampler = sampler
    while len(study.get_trials(deepcopy=False)) < trials:
        for trial in ask(study, per_episode, space):
            study.tell(trial, reward_of(shape_of(study, trial)))
    return study


def ask(study, per_episode, space=SPACE):
    """The candidates of the next episode."""
    episode, asked = len(study.get_trials(deepcopy=False)) // per_episode, []
    for _ in range(per_episode):
        trial = study.ask()
        trial.set_user_attr(EPISODE, episode)
        for choice, values in space.choices.items():
            trial.suggest_categorical(choice, values)
        asked.append(trial)
    return asked


def shape_of(study, trial):
    return architecture_of(study.get_trials(deepcopy=False)[trial.number])


def fail(study, trial, reason):
    trial.set_user_attr(FAILURE, reason)
    study.tell(trial, state=TrialState.FAIL)


def chosen(study):
    return [architecture_of(trial) for trial in study.get_trials(deepcopy=False)]


@pytest.mark.parametrize("name", SEARCHING)
def test_candidates_are_distinct_members_of_the_space(name):
    architectures = chosen(play(name, 16))
    assert all(architecture in SPACE for architecture in architectures)
    assert len(set(architectures)) == 16


@pytest.mark.parametrize("name", SEARCHING)
def test_the_same_seed_chooses_the_same_also_after_an_interruption(name):
    whole = chosen(play(name, 12, seed=7))
    interrupted = play(name, 8, seed=7)
    resumed = chosen(play(name, 12, seed=7, study=interrupted))  # a new sampler, as in a new process
    assert resumed == whole
    assert chosen(play(name, 12, seed=8)) != whole


@pytest.mark.parametrize("name", SEARCHING)
def test_a_space_can_be_exhausted(name):
    space = SearchSpace.from_dict(
        {"num_hidden_layers": [1, 2], "num_attention_heads": [2], "hidden_size": [8], "intermediate_size": [8, 16]}
    )
    study = play(name, 4, per_episode=2, space=space)
    assert set(chosen(study)) == set(space)
    with pytest.raises(RuntimeError, match="all 4 architectures of the space are taken"):
        study.ask().suggest_categorical("num_hidden_layers", [1, 2])


@pytest.mark.parametrize("name", ["bayesian", "lstm"])
def test_our_controllers_beat_chance(name):
    """Mean of the best reward over seeds: the summit is 1.0, and one in 24 architectures sits on it."""
    found = {"random": [], name: []}
    for seed in range(5):
        for controller, values in found.items():
            values.append(play(controller, 24, seed=seed, epsilon=EpsilonSchedule(1.0, 0.3)).best_value)
    assert sum(found[name]) > sum(found["random"])


def test_a_gaussian_process_finds_the_summit_of_a_smooth_landscape():
    for seed in range(3):
        assert play("bayesian", 24, seed=seed).best_value == pytest.approx(1.0)


def test_the_first_episode_of_bayesian_optimisation_is_spread_out():
    first = chosen(play("bayesian", 4, per_episode=4))
    assert {architecture.num_hidden_layers for architecture in first} >= {1, 6}
    assert len({architecture.hidden_act for architecture in first}) == 2


def test_what_misses_a_constraint_is_not_proposed_by_bayesian_optimisation():
    sampler = make_controller("bayesian", SPACE, 4)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for _ in range(6):
        trials = ask(study, 4)
        for trial in trials:
            trial.set_constraint("speedup", trial.params["num_hidden_layers"] - 3.5)
        for trial in trials:
            study.tell(trial, float(trial.params["num_hidden_layers"]))
    last = [architecture.num_hidden_layers for architecture in chosen(study)[12:]]
    assert sum(layers > 3 for layers in last) <= 3
    assert last.count(3) >= 6


def test_without_chance_the_best_predicted_are_chosen():
    study = play("lstm", 24, epsilon=EpsilonSchedule(0.0, 0.0))
    last = [trial.value for trial in study.get_trials(deepcopy=False)[-4:]]
    first = [trial.value for trial in study.get_trials(deepcopy=False)[:4]]
    assert sum(last) > sum(first)


def test_epsilon_falls_with_the_episodes():
    schedule = EpsilonSchedule(1.0, 0.05)
    assert [schedule(0), schedule(1), schedule(10)] == pytest.approx([1.0, 0.95, 0.5])
    assert schedule(30) == 0


def test_an_architecture_that_misses_a_constraint_does_not_lead():
    sampler = LSTMSampler(SPACE, 4, seed=0, epsilon=EpsilonSchedule(0.0, 0.0))
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for _ in range(2):
        for trial in ask(study, 4):
            layers = trial.params["num_hidden_layers"]
            trial.set_constraint("speedup", 1.0 if layers > 3 else -1.0)
            study.tell(trial, float(layers))
    ranked = sampler._rank(*sampler.known(study, 8)[:2], list(SPACE))
    slow = [architecture.num_hidden_layers > 3 for architecture in ranked]
    assert sum(slow[: len(slow) // 4]) < sum(slow) / 4


def test_unknown_controller_is_refused():
    with pytest.raises(ValueError, match="'grid' is unknown.*bayesian, lstm, tpe, gp, nsga2, random, depth"):
        make_controller("grid", SPACE, 4)


def test_bayesian_optimisation_learns_from_candidates_that_were_stopped():
    """Mean of the rewards that the second episode proposes, with and without what the stopped ones promised."""

    def second_episode(seed, tells):
        sampler = make_controller("bayesian", SPACE, 12, seed=seed)
        study = optuna.create_study(sampler=sampler, direction="maximize")
        for trial in ask(study, 12):
            number, reward = trial.number, reward_of(shape_of(study, trial))
            stopped = number % 6 > 0
            trial.report(0.0, 5 if stopped else 10)
            if stopped and tells:
                trial.set_user_attr(REWARD, reward - 0.1)  # it has still to learn
            study.tell(trial, None if stopped else reward, state=TrialState.PRUNED if stopped else TrialState.COMPLETE)
        return sum(reward_of(shape_of(study, trial)) for trial in ask(study, 12)) / 12

    seeds = range(4)
    assert sum(second_episode(s, True) for s in seeds) > sum(second_episode(s, False) for s in seeds) + 0.1


def failing_shares(name, reason, seeds=3, episodes=6):
    """Shares of candidates that fail, where wide and deep ones do and the reward grows with size."""
    space = SearchSpace.load("quickstart")
    failed = 0
    for seed in range(seeds):
        study = optuna.create_study(sampler=make_controller(name, space, 5, seed=seed), direction="maximize")
        for _ in range(episodes):
            for trial in ask(study, 5, space):
                shape = shape_of(study, trial)
                if shape.hidden_size >= 288 and shape.num_hidden_layers >= 3:
                    fail(study, trial, reason)
                    failed += 1
                else:
                    study.tell(trial, shape.encoder_parameters / 1e7)
    return failed / (5 * episodes * seeds)


@pytest.mark.parametrize("reason", [DIVERGED, OUT_OF_MEMORY])
def test_the_default_learns_where_candidates_fail(reason):
    assert failing_shares("bayesian", reason) <= 0.2  # a third of the space fails


@pytest.mark.parametrize("name", ["lstm", "tpe"])
def test_every_controller_learns_where_candidates_fail(name):
    """More than half would fail of those that do not."""
    assert failing_shares(name, DIVERGED, seeds=2) < 0.33


@pytest.mark.parametrize("name", SEARCHING)
def test_a_search_in_which_all_have_failed_goes_on(name):
    study = optuna.create_study(sampler=make_controller(name, SPACE, 4), direction="maximize")
    for trial in ask(study, 4):
        fail(study, trial, DIVERGED)
    assert len({shape_of(study, trial) for trial in ask(study, 4)} - {None}) == 4


def test_what_was_too_slow_informs_the_constraint_alone():
    study = optuna.create_study(sampler=make_controller("bayesian", SPACE, 4), direction="maximize")
    for _ in range(5):
        for trial in ask(study, 4):
            layers = trial.params["num_hidden_layers"]
            trial.set_constraint("speedup", layers - 3.5)
            if layers > 3:
                fail(study, trial, TOO_SLOW)
            else:
                study.tell(trial, float(layers))
    assert sum(shape.num_hidden_layers > 3 for shape in chosen(study)[8:]) <= 3


def test_what_a_killed_worker_had_says_nothing_of_its_shape():
    study = optuna.create_study(sampler=make_controller("bayesian", SPACE, 4), direction="maximize")
    for trial in ask(study, 4):
        fail(study, trial, KILLED)
    _, observed, _ = study.sampler.known(study, 4)
    assert observed == []


@pytest.mark.parametrize("name", SEARCHING)
def test_what_is_not_admitted_is_never_proposed(name):
    sampler = make_controller(name, SPACE, 4)
    sampler.admits = lambda shapes: np.array([shape.num_hidden_layers <= 2 for shape in shapes])
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for _ in range(4):
        for trial in ask(study, 4):
            study.tell(trial, reward_of(shape_of(study, trial)))
    assert all(shape.num_hidden_layers <= 2 for shape in chosen(study))


def test_without_a_barrier_all_that_has_finished_counts_and_all_that_runs_is_pending():
    sampler = make_controller("bayesian", SPACE, 4)
    sampler.asynchronous = True
    study = optuna.create_study(sampler=sampler, direction="maximize")
    first, *others = ask(study, 4)
    study.tell(first, 1.0)
    _, observed, pending = sampler.known(study, 3)
    assert [one.architecture for one in observed] == [shape_of(study, first)]
    assert set(pending) == {shape_of(study, trial) for trial in others[:2]}


def test_a_promise_is_the_share_that_the_next_is_expected_to_add():
    study = play("bayesian", 8)
    early = study.sampler.promise(study, 8)
    study = play("bayesian", 60)
    late = study.sampler.promise(study, 60)
    assert 0 <= late < early
    assert play("random", 8).sampler.promise(study, 8) is None


def test_belief_of_a_reward_is_drawn_to_that_of_its_neighbours():
    shapes = list(SPACE)[::7]
    rewards = np.array([reward_of(one) for one in shapes])
    lucky = int(rewards.argmin())
    rewards[lucky] += 0.5
    trials = [Trial(i, 0, one, COMPLETE, reward=float(rewards[i])) for i, one in enumerate(shapes)]
    believed = posterior(SPACE, trials)
    assert believed[lucky][0] < rewards[lucky] - 0.1
    assert all(deviation > 0 for _, deviation in believed.values())
    few = posterior(SPACE, trials[:3])
    assert few == {i: (float(rewards[i]), 0.0) for i in range(3)}


def test_the_rule_of_thumb_keeps_the_teachers_shape_and_begins_with_the_deepest_that_is_admitted():
    teacher = Architecture(12, 4, 48, 128, "relu")
    sampler = make_controller("depth", SPACE, 3, teacher=teacher)
    sampler.admits = lambda shapes: np.array([shape.num_hidden_layers <= 4 for shape in shapes])
    study = optuna.create_study(sampler=sampler, direction="maximize")
    found = [shape_of(study, trial) for trial in ask(study, 3)]
    assert found == [Architecture(depth, 4, 48, 128, "relu") for depth in (4, 3, 2)]
    assert sampler.available(study, 3) == [Architecture(1, 4, 48, 128, "relu")]


def test_a_list_is_proposed_in_its_order_and_then_no_more(tmp_path):
    path = tmp_path / "hand.yaml"
    shapes = [Architecture(2, 2, 24, 32), Architecture(1, 2, 36, 64, "relu")]
    path.write_text(yaml.safe_dump([one.as_dict() for one in shapes]))
    sampler = make_controller("hand", SPACE, 2, hand=load_hand_list(path, SPACE))
    study = optuna.create_study(sampler=sampler, direction="maximize")
    assert [shape_of(study, trial) for trial in ask(study, 2)] == shapes
    assert sampler.available(study, 2) == []


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "must be a list of one or more architectures"),
        ({"hidden_size": 24}, "must be a list of one or more architectures"),
        ([{"hidden_size": 24}], "entry 1 .*missing"),
        ([Architecture(2, 2, 24, 32).as_dict() | {"hiden_size": 3}], "entry 1 .*hiden_size"),
        ([Architecture(2, 2, 24, 32).as_dict(), Architecture(9, 2, 24, 32).as_dict()], "entry 2 .*not in the search"),
    ],
)
def test_bad_lists_name_the_entry_in_one_line(tmp_path, entries, message):
    path = tmp_path / "hand.yaml"
    path.write_text(yaml.safe_dump(entries))
    with pytest.raises(ValueError, match=message) as error:
        load_hand_list(path, SPACE)
    assert "\n" not in str(error.value)
