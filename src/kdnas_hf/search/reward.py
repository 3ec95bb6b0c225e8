"""What an architecture is worth: its quality on held-out text, traded against latency."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..latency import Latency
from ..utils.choices import check_choice

LAYERS = ("last", "all")


class Quality(Protocol):
    """How good a student is: the one measure that choice, front, budgets and report share."""

    @property
    def label(self) -> str:
        """Its name in tables and plots."""

    def __call__(self, metrics: Mapping[str, float], student: Any, /) -> float | None:
        """The quality of a student, at most 1; None if it has none.

        Args:
            metrics: Its part of what `DistillationTrainer` measured on held-out text, without prefix.
            student: Its encoder.
        """


@dataclass(frozen=True)
class HeldoutQuality:
    """1 - L on held-out text, L being the error of whatever the losses name.

    With standardized hidden states it is R², the share of the teacher's variance that the student explains. The mean of
    all mapped layers, as published, flatters deep students: they are compared with more of the teacher's early layers,
    which are easier to explain. The last layer is what a user of the student gets.

    Args:
        layers: Whether hidden states are those of the ``"last"`` mapped layer, or the mean of ``"all"``.
        label: How reports call it.
    """

    layers: str = "last"
    label: str = "R²"

    def __post_init__(self) -> None:
        check_choice("reward_layers", self.layers, LAYERS)

    def __call__(self, metrics: Mapping[str, float], student: Any = None, /) -> float | None:
        """See `Quality`."""
        if self.layers == "all":
            return _finite(1.0 - metrics["loss"])
        return _finite(1.0 - metrics["error"])


@dataclass(frozen=True)
class Reward:
    """R = (1 - L) * (lat_S / (beta * lat_T)) ** alpha (KD-NAS, arXiv 2303.09639), where 1 - L is the quality.

    Args:
        alpha: Exponent of the latency; negative, so that slower is worse. A student that is twice as fast may lose the
            share 1 - 2 ** alpha of its quality and still earn the same reward.
        beta: Latency that leaves the quality as it is, as a share of the teacher's. It scales all rewards alike.
        layers: See `HeldoutQuality`; only that takes it.

    Raises:
        ValueError: If alpha is positive, or beta is not.
    """

    alpha: float
    beta: float = 0.6
    layers: str = "last"

    def __post_init__(self) -> None:
        if self.alpha > 0:
            raise ValueError(f"reward_alpha={self.alpha} rewards slow students; it must not be positive.")
        if self.beta <= 0:
            raise ValueError(f"reward_beta={self.beta} must be positive.")
        check_choice("reward_layers", self.layers, LAYERS)

    def __call__(self, quality: float, latency: Latency) -> float:
        """The reward of a quality and the latencies of student and teacher.

        A student that explains nothing earns 0 however fast it is: a negative quality would grow with speed.
        """
        return max(quality, 0.0) * (latency.student_ms / (self.beta * latency.teacher_ms)) ** self.alpha

    def __str__(self) -> str:
        layers = "last mapped layer" if self.layers == "last" else "mean of all mapped layers"
        return f"(1 - L) * (latency / ({self.beta:g} * teacher's latency)) ** {self.alpha:g}; L: {layers}"


RewardFunction = Callable[[float, Latency], float]

# `published` was chosen for 1 - L near 0.9 everywhere. `quality` is for R² of 0.1 to 0.6, as after a mini-KD: the
# exponent with which the knee of the measured front of shapes at least 8x faster wins (docs/reward.md).
REWARDS = {
    "quality": Reward(alpha=-0.12),
    "published": Reward(alpha=-0.06, layers="all"),
}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
