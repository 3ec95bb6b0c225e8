"""What an architecture is worth: quality traded against latency."""

from __future__ import annotations

import math
from dataclasses import dataclass


def earlier_step(steps: int) -> int:
    """The step at which a learning curve is read for the first time, to be followed from its point after ``steps``.

    The last doubling of the steps. What is before it says more of how a shape begins than of how it goes on.
    """
    return max(steps // 2, 1)


@dataclass(frozen=True)
class Reward:
    """R = (1 - L) * (lat_S / (beta * lat_T)) ** alpha (KD-NAS, arXiv 2303.09639).

    With standardised targets 1 - L is R², the share of the teacher's variance that the student explains. The mean of
    all mapped layers, as published, flatters deep students: they are compared with more of the teacher's early layers,
    which are easier to explain. The last layer is what a user of the student gets.

    A mini-KD favours small students: large ones learn longer. So L is that of a longer training, extrapolated from the
    learning curve of the mini-KD (docs/reward.md says how well that predicts).

    Args:
        alpha: Exponent of the latency; negative, so that slower is worse. A student that is twice as fast may lose the
            share 1 - 2 ** alpha of its R² and still earn the same reward.
        beta: Latency that leaves the quality as it is, as a share of the teacher's. It scales all rewards alike.
        layers: Whether L is the loss of the ``"last"`` mapped layer, or the mean of ``"all"``.
        horizon: After how many times the tokens of the mini-KD L is taken; 1 is as measured, and as published.

    Raises:
        ValueError: If alpha is positive or beta is not, or the horizon is less than 1.
    """

    alpha: float
    beta: float = 0.6
    layers: str = "last"
    horizon: float = 1.0

    def __post_init__(self) -> None:
        if self.alpha > 0:
            raise ValueError(f"reward_alpha={self.alpha} rewards slow students; it must not be positive.")
        if self.beta <= 0:
            raise ValueError(f"reward_beta={self.beta} must be positive.")
        if self.layers not in ("last", "all"):
            raise ValueError(f"reward_layers={self.layers!r} is unknown; choose from last, all.")
        if self.horizon < 1:
            raise ValueError(f"reward_horizon={self.horizon} must be at least 1: 1 takes L as it was measured.")

    @property
    def metric(self) -> str:
        """Name of L among the metrics of `DistillationTrainer`."""
        return "error" if self.layers == "last" else "loss"

    def extrapolate(
        self, earlier_loss: float, loss: float, earlier: int, steps: int, max_steps: int | None = None
    ) -> float:
        """L after `horizon` mini-KDs: on the power law of the steps through two points of the learning curve.

        (Losses fall as powers of the steps: Kaplan et al. 2020, arXiv 2001.08361.)

        Args:
            earlier_loss: L after ``earlier`` steps.
            loss: L after ``steps``.
            earlier: See `earlier_step`.
            steps: Steps so far.
            max_steps: Steps of the whole mini-KD; by default this is its end.
        """
        if self.horizon == 1 or earlier >= steps or earlier_loss <= 0:
            return loss
        times = math.log(self.horizon * (max_steps or steps) / steps) / math.log(steps / earlier)
        return loss * (loss / earlier_loss) ** times

    def __call__(self, loss: float, latency_ms: float, teacher_latency_ms: float) -> float:
        """The reward of a held-out loss and the latencies of student and teacher, in milliseconds.

        A student that explains nothing (L >= 1) earns 0 however fast it is: a negative quality would grow with speed.
        """
        return max(1.0 - loss, 0.0) * (latency_ms / (self.beta * teacher_latency_ms)) ** self.alpha


# `published` was chosen for 1 - L near 0.9 everywhere. `r2` is for R² of 0.1 to 0.5, as after a mini-KD: the exponent
# with which the knee of the measured front wins; docs/reward.md says how it was found.
REWARDS = {
    "r2": Reward(alpha=-0.12, beta=0.6, layers="last", horizon=10),
    "published": Reward(alpha=-0.06, beta=0.6, layers="all"),
}
