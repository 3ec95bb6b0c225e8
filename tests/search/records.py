"""Trials and confirmations for the tests of the study, the controllers and the report."""

from kdnas_hf.latency import Latency
from kdnas_hf.search import Confirmation, SearchSpace, Trial
from kdnas_hf.students import Architecture

SPACE = SearchSpace.from_dict(
    {
        "num_hidden_layers": [1, 2, 3],
        "num_attention_heads": [2],
        "hidden_size": [8, 16],
        "intermediate_size": [16, 32],
        "hidden_act": ["gelu", "relu"],
    }
)

# one to climb in
LANDSCAPE = SearchSpace.from_dict(
    {
        "num_hidden_layers": [1, 2, 3, 4, 5, 6],
        "num_attention_heads": [2, 3, 4],
        "hidden_size": [24, 36, 48],
        "intermediate_size": [32, 64, 96, 128],
        "hidden_act": ["gelu", "relu"],
    }
)


def trial(number, architecture=None, quality=0.3, latency=10.0, state="complete", episode=0, reward=None, **values):
    """A trial beside a teacher of 40 ms; one that failed has neither quality nor reward, nor was it trained."""
    is_trained = state != "failed"
    figures = {
        "latency": Latency(latency, 0.5, 40.0),
        "costs": {"parameters": 1000},
        "quality": quality if is_trained else None,
        "loss": 1 - quality if is_trained else None,
        "readings": {5: quality / 2, 10: quality} if is_trained else {},
        "tokens": 500 if is_trained else 0,
        "seconds": 1.5,
        "reward": (quality if reward is None else reward) if is_trained else None,
    }
    return Trial(number, episode, architecture or Architecture(1, 2, 8, 16, "gelu"), state, **figures | values)


def confirmation(architecture, origin="search", qualities=(0.30, 0.32), latency=10.0, **values):
    return Confirmation(
        architecture=architecture, origin=origin, qualities=qualities, latency=Latency(latency, 0.1, 40.0), **values
    )
