"""How a student's shape is found."""

from .architecture import Architecture
from .arguments import SearchArguments
from .budgets import Budget, LatencyBudget, parse_latency
from .callback import Candidate, NASSearchCallback
from .checks import check_search, student_config
from .configuration import training_configuration
from .controllers import (
    CONTROLLERS,
    ArchitectureSampler,
    BayesianSampler,
    EpsilonSchedule,
    LSTMSampler,
    OptunaSampler,
    RewardPredictor,
    make_controller,
)
from .halving import SuccessiveHalving
from .latency_model import LatencyModel
from .ledger import ArchitectureRecord, Ledger
from .report import Comparison, compare, recommend
from .result import Confirmation, DistilledStudent, SearchResult, best_quality, pareto_front
from .reward import REWARDS, Reward
from .search import ArchitectureSearch, SearchError
from .shared_study import SharedStudy
from .space import SearchSpace
from .storage import StorageError
from .student_arguments import StudentArguments
from .study import SearchStudy
from .trial import Trial

__all__ = [
    "CONTROLLERS",
    "REWARDS",
    "Architecture",
    "ArchitectureRecord",
    "ArchitectureSampler",
    "ArchitectureSearch",
    "BayesianSampler",
    "Budget",
    "Candidate",
    "Comparison",
    "Confirmation",
    "DistilledStudent",
    "EpsilonSchedule",
    "LSTMSampler",
    "LatencyBudget",
    "LatencyModel",
    "Ledger",
    "NASSearchCallback",
    "OptunaSampler",
    "Reward",
    "RewardPredictor",
    "SearchArguments",
    "SearchError",
    "SearchResult",
    "SearchSpace",
    "SearchStudy",
    "SharedStudy",
    "StorageError",
    "StudentArguments",
    "SuccessiveHalving",
    "Trial",
    "best_quality",
    "check_search",
    "compare",
    "make_controller",
    "pareto_front",
    "parse_latency",
    "recommend",
    "student_config",
    "training_configuration",
]
