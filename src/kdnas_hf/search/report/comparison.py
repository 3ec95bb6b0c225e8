"""The searched student against rules of thumb and random shapes: at equal latency, by the same distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from ...students import Architecture
from ..result import RANDOM, SEARCH, Confirmation

CONFIDENCE = 0.95
BETTER, TIE, WORSE, UNKNOWN = "better", "tie", "worse", "unknown"


@dataclass(frozen=True)
class Comparison:
    """What a search gained over choosing a shape without one.

    Attributes:
        winner: The student's shape, which a rule of thumb or a random draw may have given as well.
        rule: The best rule of thumb that is not slower; None if none is.
        random_median: The median, or the better of two, of random shapes as fast, or else faster; None without any.
        random_percentile: Share of those random shapes that are worse than the winner, 0 to 1.
        half_width: Half of the 95 % interval of a difference between contestants; None of one seed.
        is_fair: Whether some rule of thumb has the winner's latency; if not, a lead may be owed to latency.
        tolerance: Relative difference up to which latencies, each beside its teacher's, count as equal.
        label: What quality is called.
    """

    winner: Confirmation
    rule: Confirmation | None
    random_median: Confirmation | None
    random_percentile: float | None
    half_width: float | None
    is_fair: bool
    tolerance: float
    label: str

    @property
    def difference(self) -> float | None:
        """Quality of the winner less that of the rule; None without a rule."""
        return None if self.rule is None else self.winner.quality - self.rule.quality

    @property
    def verdict(self) -> str:
        """``"better"``, ``"worse"``, ``"tie"`` where the interval of the difference holds 0, or ``"unknown"``."""
        lead, width = self.difference, self.half_width
        if lead == 0.0:  # the winner is that rule
            return TIE
        if lead is None or width is None or (lead > width and not self.is_fair):
            return UNKNOWN
        return TIE if abs(lead) <= width else BETTER if lead > 0 else WORSE

    @property
    def sentence(self) -> str:
        """The outcome in one plain sentence."""
        whose = {SEARCH: "The best shape of the search", RANDOM: "The student, a random shape,"}
        winner = whose.get(self.winner.origin, "The student")
        if self.rule is None or self.difference is None:
            return f"{winner} has no rule of thumb beside it that is as fast: whether it beats one is unknown."
        if self.rule.architecture == self.winner.architecture:
            return f"{winner} is itself the best rule of thumb, {self.rule.origin}: a tie, the search gains nothing."
        lead = f"{abs(self.difference):.4f}" + ("" if self.half_width is None else f" ± {self.half_width:.4f}")
        lead += " more" if self.difference > 0 else " less"
        lead = f"explains {lead} of the teacher (R²)" if self.label == "R²" else f"has {lead} {self.label}"
        faster = 1 - self.relative_latency(self.rule)
        where = f"which takes {faster:.0%} less time" if faster > self.tolerance else "at equal latency"
        doubt = "one seed decides nothing" if self.half_width is None else "the lead may be owed to latency"
        end = {TIE: "a tie", UNKNOWN: doubt}.get(self.verdict, self.verdict)
        rule = f"{self.rule.architecture} ({self.rule.origin})"
        return f"{winner} {lead} than the best rule of thumb, {rule}, {where}: {end}."

    def relative_latency(self, one: Confirmation) -> float:
        """Latency of a contestant as a share of the winner's, each beside its teacher's."""
        return self.winner.speedup / one.speedup


def compare(
    confirmations: Sequence[Confirmation],
    tolerance: float = 0.03,
    winner: Architecture | None = None,
    label: str = "R²",
) -> Comparison | None:
    """Compare the ``winner`` with the best rule of thumb that is not slower, and with random shapes; None without any.

    The winner is by default the first shape of origin ``"search"``. It is the best of those of its origin, and the rule
    of all rules, picked after they were measured: the interval allows for so many pairs (Bonferroni).
    """
    named = (one for one in confirmations if (one.architecture == winner if winner else one.origin == SEARCH))
    chosen = next(named, None)
    if chosen is None or all(one.origin == SEARCH for one in confirmations):
        return None
    contestants = [one for one in confirmations if len(one.qualities) == len(chosen.qualities)]
    able = [one for one in contestants if one.origin != SEARCH and chosen.speedup / one.speedup <= 1 + tolerance]
    alike = [one for one in able if chosen.speedup / one.speedup >= 1 - tolerance]
    rules = [one for one in able if one.is_rule]
    random = [one for one in able if one.origin == RANDOM and one is not chosen]
    random = [one for one in random if one in alike] or random
    picked = sum(one.origin == chosen.origin for one in contestants)
    by_shape = {one.architecture: one.qualities for one in contestants}
    return Comparison(
        winner=chosen,
        rule=max(rules, key=lambda one: one.quality, default=None),
        random_median=sorted(random, key=lambda one: one.quality)[len(random) // 2] if random else None,
        random_percentile=sum(one.quality < chosen.quality for one in random) / len(random) if random else None,
        half_width=half_width(np.array([*by_shape.values()]), pairs=picked * max(len(rules), 1)),
        is_fair=any(one.is_rule for one in alike),
        tolerance=tolerance,
        label=label,
    )


def half_width(qualities: np.ndarray, pairs: int = 1) -> float | None:
    """Half of the 95 % interval of a difference of two means over seeds, of ``(shapes, seeds)`` qualities.

    Quality is the sum of an effect of the shape, one of the seed, which all shapes share, and noise, whose variance is
    that of the residuals with (shapes - 1) * (seeds - 1) degrees of freedom; None where there are none. So many
    ``pairs`` are to be within their intervals at once.
    """
    shapes, seeds = qualities.shape
    freedom = (shapes - 1) * (seeds - 1)
    if freedom == 0:
        return None
    additive = qualities.mean(axis=1, keepdims=True) + qualities.mean(axis=0, keepdims=True) - qualities.mean()
    variance = float(((qualities - additive) ** 2).sum()) / freedom
    quantile = float(student_t.ppf(1 - (1 - CONFIDENCE) / (2 * pairs), freedom))
    return quantile * (2 * variance / seeds) ** 0.5
