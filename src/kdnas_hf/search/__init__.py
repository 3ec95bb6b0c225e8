"""How a student's shape is found."""

from .arguments import SearchArguments
from .callback import Candidate, NASSearchCallback
from .configuration import check_writable, refuse_other_run, settle_configuration, training_configuration
from .controller import (
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
from .space import Architecture, SearchSpace
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
    "check_search",
    "check_writable",
    "make_controller",
    "pareto_front",
    "recommend",
    "refuse_other_run",
    "settle_configuration",
    "student_config",
    "training_configuration",
]
