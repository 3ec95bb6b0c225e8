"""Arguments of the search."""

# No `from __future__ import annotations`: HfArgumentParser reads the types of these fields.

from dataclasses import dataclass, field

from ..export.backends import get_backend
from ..export.budgets import Budget, parse_budgets, parse_latency
from ..latency import LatencyArguments
from ..utils.choices import check_choice
from ..utils.shared_storage import check_storage
from .controllers import CONTROLLERS, PARETO_CONTROLLERS
from .controllers.lstm import EpsilonSchedule
from .halving import SuccessiveHalving
from .reward import REWARDS, Reward

# fields that say how a run is started and kept; no result depends on them
OF_THE_RUN = (
    "resume", "trim_vocabulary", "storage", "study_name", "worker_timeout", "warm_start", "max_hours", "data_dir"
)  # fmt: skip
# fields that say what is chosen; what was measured of an architecture stays as it is where they change
OF_THE_CHOICE = (
    "controller", "hand", "num_episodes", "candidates_per_episode", "epsilon_start", "epsilon_decay", "asynchronous",
    "min_improvement", "pool_size", "top_k", "speedup_budgets", "latency_budgets", "confirm", "confirm_seeds",
    "compare",
)  # fmt: skip


@dataclass
class SearchArguments(LatencyArguments):
    """What is searched, by whom, and what an architecture is worth.

    Defaults are those of KD-NAS as published, apart from the reward, which is calibrated for R², the controller, which
    needs fewer candidates, and the confirmation (docs/search.md).
    """

    space: str = field(
        default="kdnas",
        metadata={"help": "Search space: a preset (kdnas, layers, per_layer, quickstart, small) or a YAML file."},
    )
    objective: str = field(
        default="reward",
        metadata={
            "help": "What controllers are after: the highest reward, or the pareto front of quality and latency. The "
            "reward chooses the student in either case, unless budgets do."
        },
    )
    controller: str = field(
        default="bayesian",
        metadata={
            "help": "Who chooses candidates: bayesian, lstm (published), tpe, gp, nsga2, random, depth (the teacher's "
            "width, choose the depth) or hand (the list of --hand)."
        },
    )
    hand: str | None = field(
        default=None,
        metadata={"help": "YAML file with a list of architectures, in the order in which they are measured."},
    )
    num_episodes: int = field(
        default=15, metadata={"help": "Episodes of the search; may be raised when a finished search is started again."}
    )
    candidates_per_episode: int = field(default=20, metadata={"help": "Architectures measured in an episode."})
    asynchronous: bool = field(
        default=False,
        metadata={"help": "With storage: workers do not wait for each other at the end of an episode."},
    )
    max_hours: float | None = field(
        default=None, metadata={"help": "No new candidates after so many hours, counted over all starts of the run."}
    )
    min_improvement: float = field(
        default=0.0,
        metadata={
            "help": "bayesian: no new candidates where the next is expected to improve the best reward by less than "
            "this share of it; 0 goes on."
        },
    )
    epsilon_start: float = field(
        default=1.0, metadata={"help": "lstm: probability of a random candidate in the first episode."}
    )
    epsilon_decay: float = field(default=0.05, metadata={"help": "lstm: by how much that falls in each episode."})
    quality: str = field(
        default="heldout",
        metadata={
            "help": "What a student is measured by: heldout, 1 - L of whatever the losses name on held-out text, or "
            "probe:<task>, a linear classifier of a task of recipes/evaluate.py on its states."
        },
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of local files of the task of quality=probe:<task>."}
    )
    reward: str = field(default="quality", metadata={"help": "Preset of alpha and beta: quality or published."})
    reward_alpha: float | None = field(
        default=None, metadata={"help": "Exponent of the latency; overrides the preset."}
    )
    reward_beta: float | None = field(default=None, metadata={"help": "Scale of the latency; overrides the preset."})
    reward_layers: str | None = field(
        default=None,
        metadata={
            "help": "L of the reward: the last mapped layer, or the mean of all (published); overrides the preset."
        },
    )
    speedup: float = field(
        default=0.0,
        metadata={"help": "Hard constraint: students are at least this many times faster than the teacher."},
    )
    latency_budget: str | None = field(
        default=None, metadata={"help": "Hard constraint: highest median latency on this machine, like 5ms."}
    )
    max_parameters: int | None = field(
        default=None, metadata={"help": "Hard constraint: parameters of the saved student, embeddings included."}
    )
    max_encoder_parameters: int | None = field(
        default=None, metadata={"help": "Hard constraint: parameters of the layers alone."}
    )
    max_size_mb: float | None = field(
        default=None,
        metadata={"help": "Hard constraint: size of the artefact of latency_backend, in MB (10^6 bytes)."},
    )
    max_memory_mb: float | None = field(
        default=None, metadata={"help": "Hard constraint: peak memory of a call, measured in a process of its own."}
    )
    max_flops: float | None = field(
        default=None, metadata={"help": "Hard constraint: floating-point operations of a call, like 1e9."}
    )
    mini_kd_epochs: float = field(default=5.0, metadata={"help": "Passes over the proxy set for each candidate."})
    halving_rungs: list[float] | None = field(
        default=None,
        metadata={
            "help": "Successive halving: shares of a mini-KD after which the lesser candidates of a pool stop, like "
            "0.25 0.5; by default all train to the end (published)."
        },
    )
    halving_keep: float = field(default=0.5, metadata={"help": "Share of a pool's candidates that a rung lets go on."})
    pool_size: int = field(
        default=0, metadata={"help": "Candidates trained together on one teacher pass; 0: all of an episode."}
    )
    confirm: int = field(
        default=3,
        metadata={
            "help": "How many of the best are timed again with more calls and distilled with further seeds before the "
            "student is chosen; 0: the search's own figures decide (published)."
        },
    )
    confirm_seeds: int = field(default=2, metadata={"help": "Further seeds of the confirmation."})
    compare: int = field(
        default=3,
        metadata={"help": "Rules of thumb, and random shapes, of the same latency that are confirmed beside them."},
    )
    top_k: int = field(default=1, metadata={"help": "Best architectures that are distilled on the full corpus."})
    speedup_budgets: list[float] | None = field(
        default=None,
        metadata={
            "help": "Several latency budgets, as how many times faster than the teacher. Given, the architecture of "
            "the highest quality within each is distilled on the full corpus, in place of the top_k."
        },
    )
    latency_budgets: list[str] | None = field(
        default=None, metadata={"help": "The same as latencies on this machine, like 5ms 10ms."}
    )
    trim_vocabulary: bool = field(
        default=False,
        metadata={
            "help": "Leave beside each student one with only the tokens of its training text, as <student>-trimmed."
        },
    )
    storage: str | None = field(
        default=None,
        metadata={
            "help": "Where workers keep the study that they share: postgresql+psycopg://user@host/database, or "
            "journal:/shared/disk/study.log; by default study.db in output_dir, for this worker alone."
        },
    )
    study_name: str = field(default="kdnas", metadata={"help": "Name of the study in the storage."})
    worker_timeout: float = field(
        default=120.0,
        metadata={
            "help": "Seconds without a sign of life after which a worker's candidates are handed to others; with "
            "storage."
        },
    )
    warm_start: str | None = field(
        default=None, metadata={"help": "Run directory of another search whose results are taken over."}
    )
    resume: bool = field(
        default=True, metadata={"help": "Go on with the run in output_dir if there is one; else refuse to touch it."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("controller", self.controller, CONTROLLERS)
        check_choice("objective", self.objective, ("reward", "pareto"))
        check_choice("reward", self.reward, REWARDS)
        if self.objective == "pareto":
            if self.controller not in PARETO_CONTROLLERS:
                raise ValueError(
                    f"controller={self.controller!r} is after one reward; with objective='pareto' choose from "
                    f"{', '.join(PARETO_CONTROLLERS)}."
                )
            if self.halving_rungs is not None:
                raise ValueError("halving_rungs compares rewards; leave it out with objective='pareto'.")
        if (self.controller == "hand") != (self.hand is not None):
            raise ValueError(
                f"controller={self.controller!r} and hand={self.hand!r} do not go together: give both "
                "controller=hand and hand=<file.yaml>, or neither."
            )
        self._check_ignored()
        if self.data_dir is not None and self.quality == "heldout":
            raise ValueError(f"data_dir={self.data_dir!r} is for quality=probe:<task>; give both, or neither.")
        try:
            get_backend(self.latency_backend)
        except ValueError as error:
            raise ValueError(f"latency_{error}") from error
        at_least = dict.fromkeys(("num_episodes", "candidates_per_episode", "top_k", "confirm_seeds"), 1)
        at_least |= dict.fromkeys(("pool_size", "confirm", "compare", "min_improvement"), 0)
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")
        if self.storage is not None:
            check_storage(self.storage)
        elif self.asynchronous:
            raise ValueError("asynchronous=true is for workers that share a study; give storage as well.")
        for name in ("worker_timeout", "mini_kd_epochs", "max_hours"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive.")
        # checked before anything slow starts
        _ = (self.epsilon, self.reward_function, self.halving, self.budget, self.budgets)

    def _check_ignored(self) -> None:
        """Refuse options of one controller that another would ignore."""
        owners = {"epsilon_start": "lstm", "epsilon_decay": "lstm", "min_improvement": "bayesian"}
        for name, controller in owners.items():
            value, default = getattr(self, name), self.__dataclass_fields__[name].default
            if self.controller != controller and value != default:
                raise ValueError(
                    f"{name}={value} is an option of controller={controller}, which {self.controller} does not have; "
                    "leave it out."
                )

    @property
    def epsilon(self) -> EpsilonSchedule:
        """The schedule of random candidates."""
        return EpsilonSchedule(self.epsilon_start, self.epsilon_decay)

    @property
    def budget(self) -> Budget:
        """The hard constraint on every student."""
        limits = {"latency_ms": None if self.latency_budget is None else parse_latency(self.latency_budget)}
        for name in ("parameters", "encoder_parameters", "size_mb", "memory_mb", "flops"):
            limits[name] = getattr(self, f"max_{name}")
        return Budget(self.speedup, **{name: limit for name, limit in limits.items() if limit is not None})

    @property
    def budgets(self) -> list[Budget] | None:
        """Several budgets that each get a student, the widest first; each includes the hard constraint.

        Raises:
            ValueError: If one is wider than the hard constraint.
        """
        given = parse_budgets(self.speedup_budgets, self.latency_budgets)
        for one in given or []:
            if one.speedup:
                is_wider = one.speedup < self.budget.speedup
                wide, hard = f"speedup_budgets={one.speedup:g}", f"speedup={self.speedup:g}"
            else:
                is_wider = one.latency_ms > self.budget.latency_ms
                wide, hard = f"latency_budgets={one.latency_ms:g}ms", f"latency_budget={self.latency_budget}"
            if is_wider:
                raise ValueError(f"{wide} is wider than {hard}, which every student must meet; leave one of them out.")
        return None if given is None else [self.budget.stricter(one) for one in given]

    @property
    def halving(self) -> SuccessiveHalving | None:
        """Which candidates stop early."""
        return None if self.halving_rungs is None else SuccessiveHalving(tuple(self.halving_rungs), self.halving_keep)

    @property
    def reward_function(self) -> Reward:
        """The reward with its overrides."""
        preset = REWARDS[self.reward]
        return Reward(
            alpha=preset.alpha if self.reward_alpha is None else self.reward_alpha,
            beta=preset.beta if self.reward_beta is None else self.reward_beta,
            layers=self.reward_layers or preset.layers,
        )
