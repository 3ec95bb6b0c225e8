"""What an architecture is worth: quality traded against latency."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reward:
    """R = (1 - L) * (lat_S / (beta * lat_T)) ** alpha (KD-NAS, arXiv 2303.09639).

    With standardised targets 1 - L is R², the share of the teacher's variance that the student explains. The mean of
    all mapped layers, as published, flatters deep students: they are compared with more of the teacher's early layers,
    which are easier to explain. The last layer is what a user of the student gets.

    Args:
        alpha: Exponent of the latency; negative, so that slower is worse. A student that is twice as fast may lose the
            share 1 - 2 ** alpha of its R² and still earn the same reward.
        beta: Latency that leaves the quality as it is, as a share of the teacher's. It scales all rewards alike.
        layers: Whether L is the loss of the ``"last"`` mapped layer, or the mean of ``"all"``.

    Raises:
        ValueError: If alpha is positive or beta is not.
    """

    alpha: float
    beta: float = 0.6
    layers: str = "last"

    def __post_init__(self) -> None:
        if self.alpha > 0:
            raise ValueError(f"reward_alpha={self.alpha} rewards slow students; it must not be positive.")
        if self.beta <= 0:
            raise ValueError(f"reward_beta={self.beta} must be positive.")
        if self.layers not in ("last", "all"):
            raise ValueError(f"reward_layers={self.layers!r} is unknown; choose from last, all.")

    @property
    def metric(self) -> str:
        """Name of L among the metrics of `DistillationTrainer`."""
        return "last_layer_loss" if self.layers == "last" else "loss"

    def __call__(self, loss: float, latency_ms: float, teacher_latency_ms: float) -> float:
        """The reward of a held-out loss and the latencies of student and teacher, in milliseconds.

        A student that explains nothing (L >= 1) earns 0 however fast it is: a negative quality would grow with speed.
        """
        return max(1.0 - loss, 0.0) * (latency_ms / (self.beta * teacher_latency_ms)) ** self.alpha


# `published` was chosen for 1 - L near 0.9 everywhere. `r2` is for R² of 0.1 to 0.5, as after a mini-KD: the exponent
# with which the knee of the measured front wins; docs/reward.md says how it was found.
REWARDS = {
    "r2": Reward(alpha=-0.12, beta=0.6, layers="last"),
    "published": Reward(alpha=-0.06, beta=0.6, layers="all"),
}
