"""The plots of a card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .evidence import CurvePoint

CURVE_PLOT = "distillation.png"

MIN_POINTS = 3


def plot_curve(curve: Sequence[CurvePoint], path: Path) -> bool:
    """Plot the training loss against tokens, or against steps where tokens were not counted.

    Returns:
        False if there are too few points to be a curve; nothing is written then.
    """
    if len(curve) < MIN_POINTS:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    by_tokens = all(point.tokens is not None for point in curve)
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = [(point.tokens if by_tokens else point.step) or 0 for point in curve]
    axes.plot(places, [point.loss for point in curve])
    axes.set_xlabel("tokens" if by_tokens else "optimizer steps")
    axes.set_ylabel("training loss")
    axes.set_title("Distillation")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    return True
