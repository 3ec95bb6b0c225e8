"""Controllers: who chooses an episode's candidates. One file each; all are Optuna samplers."""

from ..space import SearchSpace
from .base import REWARD, ArchitectureSampler, architecture_of, distributions
from .bayesian import BayesianSampler
from .lstm import EpsilonSchedule, LSTMSampler, RewardPredictor
from .optuna_samplers import OptunaSampler

CONTROLLERS = ("bayesian", "lstm", "tpe", "gp", "nsga2", "random")
PARETO_CONTROLLERS = ("bayesian", "nsga2", "tpe", "random")  # those that can be after two objectives

__all__ = [
    "CONTROLLERS",
    "PARETO_CONTROLLERS",
    "REWARD",
    "ArchitectureSampler",
    "BayesianSampler",
    "EpsilonSchedule",
    "LSTMSampler",
    "OptunaSampler",
    "RewardPredictor",
    "architecture_of",
    "distributions",
    "make_controller",
]


def make_controller(
    name: str,
    space: SearchSpace,
    candidates_per_episode: int,
    seed: int = 0,
    epsilon: EpsilonSchedule | None = None,
) -> ArchitectureSampler:
    """Make a controller by name.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in CONTROLLERS:
        raise ValueError(f"controller={name!r} is unknown; choose from {', '.join(CONTROLLERS)}.")
    if name == "lstm":
        return LSTMSampler(space, candidates_per_episode, seed, epsilon)
    if name == "bayesian":
        return BayesianSampler(space, candidates_per_episode, seed)
    return OptunaSampler(name, space, candidates_per_episode, seed)
