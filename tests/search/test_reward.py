"""The reward and the arguments that choose it."""

from dataclasses import replace

import pytest

from kdnas_hf.search import REWARDS, Reward, SearchArguments
from kdnas_hf.search.reward import earlier_step


def test_published_reward():
    # (1 - 0.1) * (10 / (0.6 * 40)) ** -0.06
    assert REWARDS["published"](0.1, 10, 40) == pytest.approx(0.9 * (10 / 24) ** -0.06)
    assert (REWARDS["published"].alpha, REWARDS["published"].beta) == (-0.06, 0.6)


def test_reward_at_the_target_latency_is_the_quality():
    assert Reward(alpha=-0.3, beta=0.5)(0.6, 20, 40) == pytest.approx(0.4)


def test_faster_and_better_are_worth_more():
    reward = REWARDS["r2"]
    assert reward(0.5, 5, 40) > reward(0.5, 10, 40)
    assert reward(0.4, 10, 40) > reward(0.5, 10, 40)


def test_a_student_that_explains_nothing_earns_nothing_however_fast():
    assert Reward(alpha=-0.3)(1.2, 1, 40) == Reward(alpha=-0.3)(1.1, 20, 40) == 0


def test_alpha_says_what_a_doubling_of_speed_may_cost():
    reward = Reward(alpha=-0.5)
    assert reward(1 - 0.4 * 2**-0.5, 5, 40) == pytest.approx(reward(1 - 0.4, 10, 40))


def test_the_learning_curve_goes_on_as_a_power_of_the_steps():
    reward = Reward(alpha=0.0, horizon=8)
    # 0.8 after 50 steps, 0.72 after 100: nine tenths with every doubling, three of them until 800
    assert reward.extrapolate(0.8, 0.72, 50, 100) == pytest.approx(0.72 * 0.9**3)
    assert reward.extrapolate(0.8, 0.72, 50, 100, max_steps=200) == pytest.approx(0.72 * 0.9**4)  # on the way
    assert reward.extrapolate(0.7, 0.77, 50, 100) == pytest.approx(0.77 * 1.1**3)  # one that gets worse
    assert 0 < reward.extrapolate(0.9, 0.1, 50, 100) < 0.001  # no better than the teacher


def test_what_cannot_be_extrapolated_is_taken_as_measured():
    assert Reward(alpha=0.0).extrapolate(0.8, 0.7, 50, 100) == 0.7  # horizon 1, as published
    assert Reward(alpha=0.0, horizon=10).extrapolate(0.7, 0.7, 1, 1) == 0.7  # a single step
    assert REWARDS["published"].horizon == 1


@pytest.mark.parametrize(("steps", "earlier"), [(1, 1), (3, 1), (100, 50), (225, 112)])
def test_the_curve_is_followed_from_its_last_doubling(steps, earlier):
    assert earlier_step(steps) == earlier


def test_arguments_override_the_preset():
    assert SearchArguments(reward="published").reward_function == REWARDS["published"]
    assert SearchArguments(reward_alpha=-0.5).reward_function == replace(REWARDS["r2"], alpha=-0.5)
    assert SearchArguments(reward_horizon=1).reward_function == replace(REWARDS["r2"], horizon=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reward": "r3"}, "reward='r3' is unknown; choose from r2, published"),
        ({"controller": "lsmt"}, "controller='lsmt' is unknown; choose from bayesian, lstm, tpe, gp, nsga2, random"),
        ({"reward_alpha": 0.1}, "reward_alpha=0.1 rewards slow students"),
        ({"reward_beta": 0.0}, "reward_beta=0.0 must be positive"),
        ({"reward_horizon": 0.5}, "reward_horizon=0.5 must be at least 1"),
        ({"reward_layers": "first"}, "reward_layers='first' is unknown; choose from last, all"),
        ({"num_episodes": 0}, "num_episodes=0 must be at least 1"),
        ({"mini_kd_epochs": 0}, "mini_kd_epochs=0 must be positive"),
        ({"epsilon_start": 1.5}, "epsilon_start=1.5 is not a probability"),
        ({"speedup": -1}, "speedup=-1 must not be negative"),
    ],
)
def test_bad_arguments_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SearchArguments(**values)
