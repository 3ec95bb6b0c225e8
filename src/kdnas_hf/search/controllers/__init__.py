"""Controllers: who chooses an episode's candidates. All are Optuna samplers."""

from collections.abc import Sequence

from ...students import Architecture
from ...utils.choices import check_choice
from ..space import SearchSpace
from .base import ArchitectureSampler
from .bayesian import BayesianSampler
from .lstm import EpsilonSchedule, LSTMSampler
from .optuna_samplers import OptunaSampler
from .rules_of_thumb import ListSampler, depth_rule, usual_shapes

CONTROLLERS = ("bayesian", "lstm", "tpe", "gp", "nsga2", "random", "depth", "hand")
PARETO_CONTROLLERS = tuple(name for name in CONTROLLERS if name != "lstm")  # those that can be after two objectives


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
    """Make a controller by name; ValueError if there is none, or it lacks what it needs.

    ``epsilon`` is for ``lstm``, ``teacher`` the shape that ``depth`` keeps and ``bayesian`` begins with, with fewer
    layers, ``hand`` what ``hand`` proposes, in order.
    """
    check_choice("controller", name, CONTROLLERS)
    if name == "lstm":
        return LSTMSampler(space, candidates_per_episode, seed, epsilon)
    if name == "bayesian":
        usual = usual_shapes(space, teacher) if teacher else ()
        return BayesianSampler(space, candidates_per_episode, seed, usual)
    if name == "random":
        return ArchitectureSampler(space, candidates_per_episode, seed)
    if name == "depth" and teacher is not None:
        hand = depth_rule(space, teacher)
    if name in ("depth", "hand"):
        return ListSampler(space, candidates_per_episode, hand)
    return OptunaSampler(name, space, candidates_per_episode, seed)
