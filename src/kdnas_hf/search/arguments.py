"""Arguments of the search."""

# No `from __future__ import annotations`: HfArgumentParser reads the types of these fields.

from dataclasses import dataclass, field

from ..export.backends import get_backend
from .controllers import CONTROLLERS, EpsilonSchedule
from .reward import REWARDS, Reward


@dataclass
class SearchArguments:
    """What is searched, by whom, and what an architecture is worth.

    Defaults are those of KD-NAS as published, apart from the reward, which is calibrated for R².
    """

    space: str = field(
        default="kdnas", metadata={"help": "Search space: a preset (kdnas, per_layer, quickstart) or a YAML file."}
    )
    controller: str = field(
        default="lstm",
        metadata={"help": "Who chooses candidates: lstm (published), bayesian, tpe, gp, nsga2 or random."},
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
    min_speedup: float = field(
        default=0.0, metadata={"help": "Hard constraint: students less than this many times faster never win."}
    )
    mini_kd_epochs: float = field(default=5.0, metadata={"help": "Passes over the proxy set for each candidate."})
    pool_size: int = field(
        default=0, metadata={"help": "Candidates trained together on one teacher pass; 0: all of an episode."}
    )
    max_pool_memory_gb: float | None = field(
        default=None,
        metadata={
            "help": "Split an episode's pool where its students would take more than this in training, by estimate, in "
            "GB (10^9 bytes) a process; by default only when memory runs out."
        },
    )
    top_k: int = field(default=1, metadata={"help": "Best architectures that are distilled on the full corpus."})
    speedup_budgets: list[float] | None = field(
        default=None,
        metadata={
            "help": "Latency budgets, as how many times faster than the teacher. Given, the architecture of the "
            "highest R² within each is distilled on the full corpus, in place of the top_k."
        },
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
    resume: bool = field(
        default=True, metadata={"help": "Go on with the run in output_dir if there is one; else refuse to touch it."}
    )

    def __post_init__(self) -> None:
        if self.controller not in CONTROLLERS:
            raise ValueError(f"controller={self.controller!r} is unknown; choose from {', '.join(CONTROLLERS)}.")
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
        if self.max_pool_memory_gb is not None and self.max_pool_memory_gb <= 0:
            raise ValueError(f"max_pool_memory_gb={self.max_pool_memory_gb} must be positive.")
        if self.mini_kd_epochs <= 0:
            raise ValueError(f"mini_kd_epochs={self.mini_kd_epochs} must be positive.")
        if self.speedup_budgets is not None and (
            not self.speedup_budgets or any(budget <= 0 for budget in self.speedup_budgets)
        ):
            raise ValueError(f"speedup_budgets={self.speedup_budgets} must be one or several positive numbers.")
        if self.pool_size < 0 or self.min_speedup < 0:
            name = "pool_size" if self.pool_size < 0 else "min_speedup"
            raise ValueError(f"{name}={getattr(self, name)} must not be negative.")
        _ = self.epsilon, self.reward_function  # checked before anything slow starts

    @property
    def epsilon(self) -> EpsilonSchedule:
        """The schedule of random candidates."""
        return EpsilonSchedule(self.epsilon_start, self.epsilon_decay)

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
