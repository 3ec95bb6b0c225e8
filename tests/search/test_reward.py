"""The reward and the arguments that choose it."""

from dataclasses import replace

import pytest

from kdnas_hf.latency import Latency
from kdnas_hf.search import REWARDS, Reward, SearchArguments
from kdnas_hf.search.reward import HeldoutQuality


def latency(student_ms, teacher_ms=40.0):
    return Latency(student_ms, 0.0, teacher_ms)


def test_published_reward():
    # (1 - 0.1) * (10 / (0.6 * 40)) ** -0.06
    assert REWARDS["published"](0.9, latency(10)) == pytest.approx(0.9 * (10 / 24) ** -0.06)
    assert (REWARDS["published"].alpha, REWARDS["published"].beta) == (-0.06, 0.6)


def test_reward_at_the_target_latency_is_the_quality():
    assert Reward(alpha=-0.3, beta=0.5)(0.4, latency(20)) == pytest.approx(0.4)


def test_faster_and_better_are_worth_more():
    reward = REWARDS["quality"]
    assert reward(0.5, latency(5)) > reward(0.5, latency(10))
    assert reward(0.6, latency(10)) > reward(0.5, latency(10))


def test_a_student_that_explains_nothing_earns_nothing_however_fast():
    assert Reward(alpha=-0.3)(-0.2, latency(1)) == Reward(alpha=-0.3)(-0.1, latency(20)) == 0


def test_alpha_says_what_a_doubling_of_speed_may_cost():
    reward = Reward(alpha=-0.5)
    assert reward(0.4 * 2**-0.5, latency(5)) == pytest.approx(reward(0.4, latency(10)))


def test_quality_is_that_of_the_last_layer_or_of_all():
    metrics = {"loss": 0.5, "error": 0.42, "r2": 0.6}  # of losses on states and on something else: not R² alone
    assert HeldoutQuality()(metrics) == pytest.approx(0.58)
    assert HeldoutQuality("all")(metrics) == 0.5
    assert HeldoutQuality()({"loss": float("nan"), "error": float("nan")}) is None
    with pytest.raises(ValueError, match="reward_layers='first' is unknown"):
        HeldoutQuality("first")


def test_arguments_override_the_preset():
    assert SearchArguments(reward="published").reward_function == REWARDS["published"]
    assert SearchArguments(reward_alpha=-0.5).reward_function == replace(REWARDS["quality"], alpha=-0.5)
    assert SearchArguments(reward_layers="all").reward_function == replace(REWARDS["quality"], layers="all")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reward": "r3"}, "reward='r3' is unknown. Choose from quality, published"),
        ({"controller": "lsmt"}, "controller='lsmt' is unknown; did you mean 'lstm'"),
        ({"controller": "hand"}, "controller='hand' and hand=None do not go together"),
        ({"hand": "shapes.yaml"}, "controller='bayesian' and hand='shapes.yaml' do not go together"),
        ({"epsilon_decay": 0.1}, "epsilon_decay=0.1 is an option of controller=lstm, which bayesian does not have"),
        (
            {"controller": "random", "min_improvement": 0.01},
            "min_improvement=0.01 is an option of controller=bayesian, which random does not have",
        ),
        ({"speedup": 7, "speedup_budgets": [4]}, "speedup_budgets=4 is wider than speedup=7"),
        ({"latency_budget": "5ms", "latency_budgets": ["3ms", "9ms"]}, "latency_budgets=9ms is wider than"),
        ({"asynchronous": True}, "asynchronous=true is for workers that share a study; give storage"),
        ({"max_hours": 0}, "max_hours=0 must be positive"),
        ({"confirm": -1}, "confirm=-1 must be at least 0"),
        ({"reward_alpha": 0.1}, "reward_alpha=0.1 rewards slow students"),
        ({"reward_beta": 0.0}, "reward_beta=0.0 must be positive"),
        ({"reward_layers": "first"}, "reward_layers='first' is unknown. Choose from last, all"),
        ({"num_episodes": 0}, "num_episodes=0 must be at least 1"),
        ({"mini_kd_epochs": 0}, "mini_kd_epochs=0 must be positive"),
        ({"controller": "lstm", "epsilon_start": 1.5}, "epsilon_start=1.5 must be between 0 and 1"),
        ({"speedup": -1}, "speedup=-1 must be a number that is not negative"),
    ],
)
def test_bad_arguments_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SearchArguments(**values)
