"""Find the reward's exponent with which the knee of a measured front wins.

    python benchmarks/calibrate_reward.py                       # of the table of architecture_table.py
    python benchmarks/calibrate_reward.py --speedup 8           # of its part that is fast enough
    python benchmarks/calibrate_reward.py runs/quickstart       # of a search

The reward (1 - L) * (lat_S / (beta * lat_T)) ** alpha trades quality for latency at a fixed rate: a student that is
twice as fast may lose the share 1 - 2 ** alpha of its quality. Along the front of measured architectures the true
rate falls: the first layers buy much, the last little. The knee is where it turns (Kneedle, Satopää et al. 2011: the
point of the front farthest above the chord between its ends, both axes scaled to 0…1, latency by its logarithm because
that is what the reward sees). Every exponent for which the knee earns the highest reward lies in an interval; its
geometric mean is printed, with the architecture that each preset of the reward would have chosen. Where no exponent
lets a point between the ends win, the front has no knee: then what is printed is the exponent with which both ends earn
the same, and with any other one of them wins. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

from controllers import TABLE, read_rows, steps_of
from kdnas_hf import Architecture
from kdnas_hf.latency import Latency
from kdnas_hf.search import REWARDS, Trial


class Point(NamedTuple):
    """A measured architecture.

    Attributes:
        latency: Logarithm of its latency as a share of the teacher's.
        quality: As a search reads it: R² of the last layer.
        architecture: Its shape.
    """

    latency: float
    quality: float
    architecture: Architecture


def read(path: Path) -> list[Point]:
    """What a search or a table measured."""
    if path.is_dir():
        lines = (path / "architectures.jsonl").read_text(encoding="utf-8").splitlines()
        trials = [trial for trial in map(Trial.from_json, lines) if trial.is_complete]
        return [Point(-math.log(t.speedup or 1.0), t.quality or 0.0, t.architecture) for t in trials]
    return [
        Point(
            math.log(float(row["latency_ms"]) / float(row["teacher_latency_ms"])),
            float(row[f"r2_{max(steps_of(row))}"]),
            one,
        )
        for one, row in read_rows(path).items()
    ]


def front(points: list[Point]) -> list[Point]:
    """What no other beats in both, fastest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.latency, -p.quality)):
        if point.quality > (kept[-1].quality if kept else 0.0):
            kept.append(point)
    return kept


def interval(points: list[Point], index: int) -> tuple[float, float]:
    """The values of -alpha for which a point of the front earns the highest reward."""
    latency, quality, _ = points[index]
    low, high = 0.0, math.inf
    for other, (other_latency, other_quality, _) in enumerate(points):
        if other == index:
            continue
        slope = (math.log(other_quality) - math.log(quality)) / (other_latency - latency)
        if other_latency > latency:
            low = max(low, slope)
        else:
            high = min(high, slope)
    return low, high


def knee(points: list[Point]) -> int | None:
    """Index of the point farthest above the chord, among those between the ends that some exponent lets win."""
    (first, worst, _), (last, best, _) = points[0], points[-1]

    def height(index: int) -> float:
        latency, quality, _ = points[index]
        return (quality - worst) / (best - worst) - (latency - first) / (last - first)

    able = [i for i in range(1, len(points) - 1) if interval(points, i)[0] < interval(points, i)[1]]
    return max(able, key=height, default=None)


def main() -> None:
    """Calibrate on one run or table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, nargs="?", default=TABLE, help="run directory of a search, or a table")
    parser.add_argument("--speedup", type=float, default=0.0, help="leave out what is slower, as --speedup of a search")
    args = parser.parse_args()
    measured = [point for point in read(args.measured) if math.exp(-point.latency) >= args.speedup]
    points = front(measured)
    if len(points) < 3:
        raise SystemExit(f"the front has {len(points)} architectures; a knee needs at least 3.")
    chosen = knee(points)
    print("| | architecture | speed-up | quality | wins for -alpha in |\n| --- | --- | --- | --- | --- |")
    for index, (latency, quality, architecture) in enumerate(points):
        low, high = interval(points, index)
        able = f"{low:.3f} … {high:.3f}" if low < high else "none"
        mark = "knee" if index == chosen else ""
        print(f"| {mark} | {architecture} | {math.exp(-latency):.2f}x | {quality:.3f} | {able} |")
    low, high = interval(points, len(points) - 1) if chosen is None else interval(points, chosen)
    low = high if chosen is None else low
    alpha = -math.sqrt(max(low, 1e-3) * min(high, 10.0))
    winners = {}
    for name, reward in REWARDS.items():
        best = max(points, key=lambda p: reward(p.quality, Latency(math.exp(p.latency), 0.0, 1.0)))
        winners[name] = str(best.architecture)
    result = {"alpha": round(alpha, 3), "interval": [round(-high, 3), round(-low, 3)], "architectures": len(measured)}
    print(
        json.dumps(result | {"knee": None if chosen is None else str(points[chosen].architecture), "winners": winners})
    )


if __name__ == "__main__":
    main()
