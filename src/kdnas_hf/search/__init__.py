"""How a student's shape is found."""

from .architecture import Architecture, StudentArguments
from .arguments import SearchArguments
from .budgets import LatencyBudget, parse_latency
from .callback import Candidate, NASSearchCallback
from .checks import check_search, student_config
from .configuration import training_configuration
from .controllers import (
    CONTROLLERS,
    ArchitectureSampler,
    EpsilonSchedule,
    LSTMSampler,
    make_controller,
)
from .front import FrontUncertainty, front_uncertainty, pareto_front
from .halving import SuccessiveHalving
from .latency_model import LatencyModel
from .ledger import ArchitectureRecord, Ledger
from .report import recommend
from .result import DistilledStudent, SearchResult
from .reward import REWARDS, Reward
from .search import ArchitectureSearch, SearchError
from .shared_study import SharedStudy
from .space import SearchSpace
from .storage import StorageError
from .study import SearchStudy

__all__ = [
    "CONTROLLERS",
    "REWARDS",
    "Architecture",
    "ArchitectureRecord",
    "ArchitectureSampler",
    "ArchitectureSearch",
    "Candidate",
    "DistilledStudent",
    "EpsilonSchedule",
    "FrontUncertainty",
    "LSTMSampler",
    "LatencyBudget",
    "LatencyModel",
    "Ledger",
    "NASSearchCallback",
    "Reward",
    "SearchArguments",
    "SearchError",
    "SearchResult",
    "SearchSpace",
    "SearchStudy",
    "SharedStudy",
    "StorageError",
    "StudentArguments",
    "SuccessiveHalving",
    "check_search",
    "front_uncertainty",
    "make_controller",
    "pareto_front",
    "parse_latency",
    "recommend",
    "student_config",
    "training_configuration",
]
