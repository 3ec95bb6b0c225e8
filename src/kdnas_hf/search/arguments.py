"""Arguments of the search."""

# No `from __future__ import annotations`: HfArgumentParser reads the types of these fields.

from dataclasses import dataclass, field

from ..export.backends import get_backend
from .budgets import LatencyBudget, parse_budgets, parse_latency
from .controllers import CONTROLLERS, PARETO_CONTROLLERS, EpsilonSchedule
from .halving import SuccessiveHalving
from .reward import REWARDS, Reward
from .storage import check_storage


@dataclass
class SearchArguments:
    """What is searched, by whom, and what an architecture is worth.

    Defaults are those of KD-NAS as published, apart from the reward, which is calibrated for R², and the controller,
    which needs fewer candidates (docs/search.md).
    """

    space: str = field(
        default="kdnas", metadata={"help": "Search space: a preset (kdnas, per_layer, quickstart) or a YAML file."}
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
        metadata={"help": "Who chooses candidates: bayesian, lstm (published), tpe, gp, nsga2 or random."},
    )
    num_episodes: int = field(default=15, metadata={"help": "Episodes of the search."})
    candidates_per_episode: int = field(default=20, metadata={"help": "Architectures measured in an episode."})
    epsilon_start: float = field(
        default=1.0, metadata={"help": "lstm: probability of a random candidate in the first episode."}
    )
    epsilon_decay: float = field(default=0.05, metadata={"help": "lstm: by how much that falls in each episode."})
    reward: str = field(default="r2", metadata={"help": "Preset of alpha and beta: r2 or published."})
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
    reward_horizon: float | None = field(
        default=None,
        metadata={
            "help": "L of the reward is extrapolated to so many times the tokens of the mini-KD; 1: as measured "
            "(published); overrides the preset."
        },
    )
    speedup: float = field(
        default=0.0,
        metadata={"help": "Hard constraint: students less than this many times faster than the teacher never win."},
    )
    latency_budget: str | None = field(
        default=None,
        metadata={"help": "Hard constraint: students of a higher median latency on this machine never win; like 5ms."},
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
    top_k: int = field(default=1, metadata={"help": "Best architectures that are distilled on the full corpus."})
    speedup_budgets: list[float] | None = field(
        default=None,
        metadata={
            "help": "Several latency budgets, as how many times faster than the teacher. Given, the architecture of "
            "the highest R² within each is distilled on the full corpus, in place of the top_k."
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
    latency_backend: str = field(
        default="torch",
        metadata={
            "help": "Whose latency counts, of teacher and students alike: torch (eager, float32), or another of "
            "kdnas_hf.export.BACKENDS as you will deploy it, like openvino-int8 or onnx-int8."
        },
    )
    latency_batch_size: int = field(default=1, metadata={"help": "Texts in a call whose latency is measured."})
    latency_sequence_length: int = field(default=128, metadata={"help": "Tokens in a text whose latency is measured."})
    latency_threads: int = field(default=1, metadata={"help": "CPU threads while latency is measured."})
    latency_repeats: int = field(default=15, metadata={"help": "Timed calls of each model."})
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
        default=None,
        metadata={
            "help": "Another search whose results are taken over: its run directory, study.db or storage, the latter "
            "with #study_name if that is another."
        },
    )
    resume: bool = field(
        default=True, metadata={"help": "Go on with the run in output_dir if there is one; else refuse to touch it."}
    )

    def __post_init__(self) -> None:
        if self.controller not in CONTROLLERS:
            raise ValueError(f"controller={self.controller!r} is unknown; choose from {', '.join(CONTROLLERS)}.")
        if self.objective not in ("reward", "pareto"):
            raise ValueError(f"objective={self.objective!r} is unknown; choose from reward, pareto.")
        if self.objective == "pareto":
            if self.controller not in PARETO_CONTROLLERS:
                raise ValueError(
                    f"controller={self.controller!r} is after one reward; with objective='pareto' choose from "
                    f"{', '.join(PARETO_CONTROLLERS)}."
                )
            if self.halving_rungs is not None:
                raise ValueError("halving_rungs compares rewards; leave it out with objective='pareto'.")
        if self.reward not in REWARDS:
            raise ValueError(f"reward={self.reward!r} is unknown; choose from {', '.join(REWARDS)}.")
        try:
            get_backend(self.latency_backend)
        except ValueError as error:
            raise ValueError(f"latency_{error}") from error
        for name in (
            "num_episodes",
            "candidates_per_episode",
            "top_k",
            "latency_batch_size",
            "latency_sequence_length",
            "latency_threads",
            "latency_repeats",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.storage is not None:
            check_storage(self.storage)
        if self.worker_timeout <= 0:
            raise ValueError(f"worker_timeout={self.worker_timeout} must be positive.")
        if self.mini_kd_epochs <= 0:
            raise ValueError(f"mini_kd_epochs={self.mini_kd_epochs} must be positive.")
        if self.pool_size < 0:
            raise ValueError(f"pool_size={self.pool_size} must not be negative.")
        _ = (
            self.epsilon,
            self.reward_function,
            self.halving,
            self.budget,
            self.budgets,
        )  # checked before anything slow starts

    @property
    def epsilon(self) -> EpsilonSchedule:
        """The schedule of random candidates."""
        return EpsilonSchedule(self.epsilon_start, self.epsilon_decay)

    @property
    def budget(self) -> LatencyBudget:
        """The hard constraint on every student."""
        if self.latency_budget is None:
            return LatencyBudget(self.speedup)
        return LatencyBudget(self.speedup, parse_latency(self.latency_budget))

    @property
    def budgets(self) -> list[LatencyBudget] | None:
        """Several budgets that each get a student, the widest first; each includes the hard constraint."""
        given = parse_budgets(self.speedup_budgets, self.latency_budgets)
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
            horizon=preset.horizon if self.reward_horizon is None else self.reward_horizon,
        )
