"""Find the reward's exponent with which the knee of a search's front wins.

    python benchmarks/calibrate_reward.py runs/quickstart

The reward (1 - L) * (lat_S / (beta * lat_T)) ** alpha trades quality for latency at a fixed rate: a student that is
twice as fast may lose the share 1 - 2 ** alpha of its quality. Along the front of measured architectures the true
rate falls: the first layers buy much, the last little. The knee is where it turns (Kneedle, Satopää et al. 2011: the
point of the front farthest above the chord between its ends, both axes scaled to 0…1, latency by its logarithm because
that is what the reward sees). Every exponent for which the knee earns the highest reward lies in an interval; its
geometric mean is printed, with the architecture that each preset of the reward would have chosen. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from kdnas_hf.search import REWARDS, ArchitectureRecord, Ledger


def front(records: list[ArchitectureRecord]) -> list[tuple[float, float, ArchitectureRecord]]:
    """Log latency relative to the teacher, quality 1 - L and record of what no other beats in both, fastest first."""
    points = [
        (math.log(r.latency_ms / r.teacher_latency_ms), 1 - r.loss, r)
        for r in records
        if r.loss is not None and r.loss < 1
    ]
    kept: list[tuple[float, float, ArchitectureRecord]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return kept


def interval(points: list[tuple[float, float, ArchitectureRecord]], index: int) -> tuple[float, float]:
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


def knee(points: list[tuple[float, float, ArchitectureRecord]]) -> int:
    """Index of the point farthest above the chord, among those that some exponent lets win."""
    (first, worst, _), (last, best, _) = points[0], points[-1]

    def height(index: int) -> float:
        latency, quality, _ = points[index]
        return (quality - worst) / (best - worst) - (latency - first) / (last - first)

    able = [i for i in range(len(points)) if interval(points, i)[0] < interval(points, i)[1]]
    return max(able, key=height)


def main() -> None:
    """Calibrate on the ledger of one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory of a search")
    records = Ledger(parser.parse_args().run / "architectures.jsonl").read()
    points = front(records)
    if len(points) < 3:
        raise SystemExit(f"the front has {len(points)} architectures; a knee needs at least 3.")
    chosen = knee(points)
    print("| | architecture | speed-up | 1 - L | wins for -alpha in |\n| --- | --- | --- | --- | --- |")
    for index, (_, quality, record) in enumerate(points):
        low, high = interval(points, index)
        able = f"{low:.3f} … {high:.3f}" if low < high else "none"
        mark = "knee" if index == chosen else ""
        print(f"| {mark} | {record.architecture} | {record.speedup:.2f}x | {quality:.3f} | {able} |")
    low, high = interval(points, chosen)
    alpha = -math.sqrt(max(low, 1e-3) * min(high, 10.0))
    winners = {}
    for name, reward in {**REWARDS}.items():
        best = max(points, key=lambda p: reward(1 - p[1], p[2].latency_ms, p[2].teacher_latency_ms))
        winners[name] = str(best[2].architecture)
    result = {"alpha": round(alpha, 3), "interval": [round(-high, 3), round(-low, 3)], "architectures": len(records)}
    print(json.dumps(result | {"knee": str(points[chosen][2].architecture), "winners": winners}))


if __name__ == "__main__":
    main()
