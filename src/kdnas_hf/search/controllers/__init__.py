"""Controllers: who chooses an episode's candidates. All are Optuna samplers."""

from collections.abc import Sequence

from ..space import Architecture, SearchSpace
from .base import EPISODE, FAILURE, REWARD, ArchitectureSampler, architecture_of, distributions
from .bayesian import BayesianSampler
from .gaussian_process import posterior
from .lstm import EpsilonSchedule, LSTMSampler, RewardPredictor
from .optuna_samplers import OptunaSampler
from .rules_of_thumb import ListSampler, depth_rule, load_hand_list

CONTROLLERS = ("bayesian", "lstm", "tpe", "gp", "nsga2", "random", "depth", "hand")
PARETO_CONTROLLERS = tuple(name for name in CONTROLLERS if name != "lstm")  # those that can be after two objectives

__all__ = [
    "CONTROLLERS",
    "EPISODE",
    "FAILURE",
    "PARETO_CONTROLLERS",
    "REWARD",
    "ArchitectureSampler",
    "BayesianSampler",
    "EpsilonSchedule",
    "LSTMSampler",
    "ListSampler",
    "OptunaSampler",
    "RewardPredictor",
    "architecture_of",
    "depth_rule",
    "distributions",
    "load_hand_list",
    "make_controller",
    "posterior",
]


def make_controller(
    name: str,
    space: SearchSpace,
    candidates_per_episode: int,
    *,
    seed: int = 0,
    epsilon: EpsilonSchedule | None = None,
    teacher: Architecture | None = None,
    hand: Sequence[Architecture] = (),
) -> ArchitectureSampler:
    """Make a controller by name.

    Args:
        name: One of `CONTROLLERS`.
        space: The search space.
        candidates_per_episode: Trials in an episode.
        seed: What all random choices are drawn from.
        epsilon: Of ``lstm``.
        teacher: The teacher's shape, which ``depth`` keeps.
        hand: What ``hand`` proposes, in this order.

    Raises:
        ValueError: If there is none of that name, or it lacks what it needs.
    """
    if name not in CONTROLLERS:
        raise ValueError(f"controller={name!r} is unknown; choose from {', '.join(CONTROLLERS)}.")
    if name == "bayesian":
        return BayesianSampler(space, candidates_per_episode, seed)
    if name == "lstm":
        return LSTMSampler(space, candidates_per_episode, seed, epsilon)
    if name == "random":
        return ArchitectureSampler(space, candidates_per_episode, seed)
    if name == "depth":
        if teacher is None:
            raise ValueError("controller='depth' keeps the teacher's shape; give teacher.")
        return ListSampler(space, candidates_per_episode, depth_rule(space, teacher))
    if name == "hand":
        return ListSampler(space, candidates_per_episode, hand)
    return OptunaSampler(name, space, candidates_per_episode, seed)
