"""How a student's shape is found."""

from .arguments import SearchArguments
from .callback import NASSearchCallback
from .checks import check_search, check_shapes
from .controllers import CONTROLLERS, make_controller
from .controllers.base import ArchitectureSampler
from .controllers.bayesian import BayesianSampler
from .controllers.lstm import EpsilonSchedule, LSTMSampler
from .controllers.optuna_samplers import OptunaSampler
from .full_distillation import SearchError
from .halving import SuccessiveHalving
from .report import Comparison, compare, recommend
from .result import Confirmation, DistilledStudent, SearchResult, pareto_front
from .reward import REWARDS, HeldoutQuality, Quality, Reward
from .search import ArchitectureSearch
from .space import SearchSpace
from .study import SearchStudy
from .trial import Trial

__all__ = [
    "CONTROLLERS",
    "REWARDS",
    "ArchitectureSampler",
    "ArchitectureSearch",
    "BayesianSampler",
    "Comparison",
    "Confirmation",
    "DistilledStudent",
    "EpsilonSchedule",
    "HeldoutQuality",
    "LSTMSampler",
    "NASSearchCallback",
    "OptunaSampler",
    "Quality",
    "Reward",
    "SearchArguments",
    "SearchError",
    "SearchResult",
    "SearchSpace",
    "SearchStudy",
    "SuccessiveHalving",
    "Trial",
    "check_search",
    "check_shapes",
    "compare",
    "make_controller",
    "pareto_front",
    "recommend",
]
