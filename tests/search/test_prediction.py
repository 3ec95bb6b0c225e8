"""Predictions for what was not measured."""

import numpy as np
import pytest
from records import record

from kdnas_hf.search import SearchSpace
from kdnas_hf.search.prediction import FEWEST, predict_space

pytestmark = pytest.mark.long  # depends on no line of transformers

SPACE = SearchSpace.from_dict(
    {
        "num_hidden_layers": [1, 2, 3, 4, 6],
        "num_attention_heads": [4],
        "hidden_size": [96, 192, 288],
        "intermediate_size": [384, 768],
        "hidden_act": ["gelu", "relu"],
    }
)


def latency_of(architecture):
    """Milliseconds: half a millisecond a layer, and 8 for a million parameters."""
    return 0.5 * architecture.num_hidden_layers + 8 * architecture.encoder_parameters / 1e6


def reward_of(architecture):
    """Smooth in the shape, highest at 3 layers of 192."""
    return 0.6 - 0.03 * abs(architecture.num_hidden_layers - 3) - 0.0005 * abs(architecture.hidden_size - 192)


def measured(count, seed=0):
    chosen = np.random.default_rng(seed).permutation(list(SPACE))[:count]
    return [record(n, one, reward=reward_of(one), latency=latency_of(one)) for n, one in enumerate(chosen)]


def test_everything_that_was_not_measured_is_predicted():
    records = measured(30)
    prediction = predict_space(SPACE, records)
    assert {one.architecture for one in prediction.architectures} == set(SPACE) - {r.architecture for r in records}
    rewards = [one.reward for one in prediction.architectures]
    assert rewards == sorted(rewards, reverse=True)
    true = [reward_of(one.architecture) for one in prediction.architectures]
    assert np.corrcoef(rewards, true)[0, 1] > 0.9
    latencies = [one.latency_ms for one in prediction.architectures]
    assert latencies == pytest.approx([latency_of(one.architecture) for one in prediction.architectures], rel=0.1)
    assert prediction.latency_error < 0.1


def test_what_is_likely_better_than_the_best_has_a_chance():
    """The region of the summit was left out: what lies there is expected first."""
    records = [r for r in measured(40) if reward_of(r.architecture) < 0.58]
    prediction = predict_space(SPACE, records)
    first = prediction.architectures[0]
    assert reward_of(first.architecture) > 0.58
    assert first.chance > 0.3 > 0.01 > prediction.architectures[-1].chance
    assert all(0 <= one.chance <= 1 for one in prediction.architectures)


def test_too_few_measurements_predict_nothing():
    assert predict_space(SPACE, measured(FEWEST - 1)) is None
    failed = [record(100 + n, one, state="failed") for n, one in enumerate(list(SPACE)[:5])]
    assert predict_space(SPACE, measured(FEWEST - 1) + failed) is None


def test_a_space_that_was_measured_whole_has_nothing_left():
    assert predict_space(SPACE, measured(len(SPACE))).architectures == []
