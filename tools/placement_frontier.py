"""Draw error against traffic of each placement, from what `test_traffic` prints.

Usage: python tools/placement_frontier.py LOG PICTURE
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib import pyplot as plt

LINE = re.compile(
    r"(?P<variant>\w+) (?P<name>fp16|\S+ \w+) SM (?P<sm>\d+) batch 1: .* weights, "
    r"(?P<total>[\d.]+) MB, .* verified (?P<error>[\d.]+)$"
)
COLOURS = {
    "fp16": "#555555",
    "int8": "#0b6fa4",
    "int8-weights": "#56b4e9",
    "fp8": "#b24a00",
    "fp8-weights": "#e69f00",
}


class Point(NamedTuple):
    """An engine: what it moves at batch 1 with its weights, and its logits' relative error."""

    name: str
    sm: str
    total: float
    error: float


def points_of(log: str) -> dict[str, list[Point]]:
    """By variant, in the order of the lines."""
    found = defaultdict(list)
    for line in log.splitlines():
        if match := LINE.search(line):
            point = Point(match["name"], match["sm"], float(match["total"]), float(match["error"]))
            found[match["variant"]].append(point)
    return found


def main(log: Path, picture: Path) -> None:
    """Write a PNG with one panel for each variant."""
    variants = points_of(log.read_text())
    if not variants:
        raise SystemExit(f"{log} has no lines of test_traffic")
    mpl.use("Agg")
    figure, axes = plt.subplots(1, len(variants), figsize=(5 * len(variants), 4), squeeze=False)
    for axis, (variant, points) in zip(axes[0], variants.items(), strict=True):
        for point in points:
            precision, _, placement = point.name.partition(" ")
            colour, place = COLOURS[precision], (point.total, 100 * point.error)
            axis.scatter(*place, color=colour, s=36, label=f"{precision}, SM {point.sm}")
            axis.annotate(placement, place, (6, -3), textcoords="offset points", fontsize=7)
        legend = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        axis.legend(legend.values(), legend.keys(), fontsize=7, frameon=False)
        axis.set(title=f"variant {variant}", xlabel="moved at batch 1, and weights (MB)", ylim=0)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("error of the logits (%)")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
