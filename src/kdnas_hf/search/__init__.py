"""How a student's shape is found."""

from .architecture import Architecture, StudentArguments
from .arguments import SearchArguments
from .budgets import Budget, parse_latency
from .callback import NASSearchCallback
from .checks import check_search, check_shapes
from .configuration import training_configuration
from .controllers import (
    CONTROLLERS,
    ArchitectureSampler,
    BayesianSampler,
    EpsilonSchedule,
    LSTMSampler,
    OptunaSampler,
    make_controller,
)
from .full_distillation import SearchError
from .halving import SuccessiveHalving
from .latency_model import LatencyModel
from .report import Comparison, compare, recommend
from .result import Confirmation, DistilledStudent, SearchResult, pareto_front
from .reward import REWARDS, HeldoutQuality, Quality, Reward
from .search import ArchitectureSearch
from .setting import student_config
from .space import SearchSpace
from .storage import StorageError
from .study import SearchStudy
from .trial import Trial

__all__ = [
    "CONTROLLERS",
    "REWARDS",
    "Architecture",
    "ArchitectureSampler",
    "ArchitectureSearch",
    "BayesianSampler",
    "Budget",
    "Comparison",
    "Confirmation",
    "DistilledStudent",
    "EpsilonSchedule",
    "HeldoutQuality",
    "LSTMSampler",
    "LatencyModel",
    "NASSearchCallback",
    "OptunaSampler",
    "Quality",
    "Reward",
    "SearchArguments",
    "SearchError",
    "SearchResult",
    "SearchSpace",
    "SearchStudy",
    "StorageError",
    "StudentArguments",
    "SuccessiveHalving",
    "Trial",
    "check_search",
    "check_shapes",
    "compare",
    "make_controller",
    "pareto_front",
    "parse_latency",
    "recommend",
    "student_config",
    "training_configuration",
]
