"""How a student's shape is found."""

from .architecture import Architecture
from .arguments import SearchArguments
from .callback import Candidate, NASSearchCallback
from .configuration import training_configuration
from .controllers import (
    CONTROLLERS,
    ArchitectureSampler,
    EpsilonSchedule,
    LSTMSampler,
    OptunaSampler,
    RewardPredictor,
    make_controller,
)
from .ledger import ArchitectureRecord, Ledger
from .report import pareto_front, recommend
from .reward import REWARDS, Reward
from .search import ArchitectureSearch, DistilledStudent, SearchError, SearchResult, check_search, student_config
from .space import SearchSpace
from .student_arguments import StudentArguments
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
    "LSTMSampler",
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
    "StudentArguments",
    "check_search",
    "make_controller",
    "pareto_front",
    "recommend",
    "student_config",
    "training_configuration",
]
