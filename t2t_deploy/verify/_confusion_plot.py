"""The picture of what is taken for what, a panel for each artifact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from t2t_deploy._optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3
_PANEL_INCHES = 4.6
# Up to this many classes, each has its name on the axes and each pair its number of pictures.
_MOST_NAMED = 20
_RIGHT = "#1f5fa8"
_WRONG = "#d62728"
_DARK = 0.5
# Area of the dot of all pictures of a class, and of the smallest that is seen, in points squared.
_DOT_POINTS = 20.0
_SMALLEST_DOT_POINTS = 1.0


@dataclass(frozen=True, slots=True)
class ConfusionPanel:
    """One artifact: its heading and its (classes, classes) numbers of pictures."""

    title: str
    confusion: np.ndarray


def plot_confusion(
    panels: Sequence[ConfusionPanel], path: Path, *, truth: str, names: Sequence[str] = ()
) -> None:
    """Write a PNG: rows are the true classes, columns the classes found.

    truth: what the rows are, for their axis; names: the classes, else their numbers.
    Raises MissingDependencyError without matplotlib.
    """
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(panels), _COLUMNS)
    rows = math.ceil(len(panels) / columns)
    # Not pyplot: it keeps figures, and chooses a display.
    figure = Figure(
        figsize=(_PANEL_INCHES * columns, _PANEL_INCHES * 1.1 * rows), dpi=110, layout="constrained"
    )
    FigureCanvasAgg(figure)
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(places, panels, strict=False):
        _draw(axes, panel, names)
        axes.set_xlabel("class found")
        axes.set_ylabel(truth)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw(axes: Axes, panel: ConfusionPanel, names: Sequence[str]) -> None:
    counts = panel.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.set_title(panel.title, fontsize=9, loc="left")
    axes.tick_params(length=0, labelsize=8)
    if len(counts) > _MOST_NAMED:
        _draw_dots(axes, shares)
    else:
        _draw_numbers(axes, counts, shares)
        labels = names or [str(index) for index in range(len(counts))]
        long = max(len(label) for label in labels) > 3
        axes.set_xticks(range(len(counts)), labels, rotation=90 if long else 0)
        axes.set_yticks(range(len(counts)), labels)


def _draw_numbers(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    # The square root lifts the few that are wrong out of the white.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    for row, column in np.argwhere(counts):
        right = row == column
        axes.text(
            column,
            row,
            str(counts[row, column]),
            ha="center",
            va="center",
            fontsize=7,
            color=("white" if shares[row, column] > _DARK else "black") if right else _WRONG,
        )


def _draw_dots(axes: Axes, shares: np.ndarray) -> None:
    """A dot for each pair, its area the share: cells would be smaller than a pixel."""
    rows, columns = np.nonzero(shares)
    areas = np.maximum(_DOT_POINTS * shares[rows, columns], _SMALLEST_DOT_POINTS)
    colours = np.where(rows == columns, _RIGHT, _WRONG)
    axes.scatter(columns, rows, s=areas, c=colours, linewidths=0)
    axes.set_aspect("equal")
    axes.set_xlim(-0.5, len(shares) - 0.5)
    axes.set_ylim(len(shares) - 0.5, -0.5)
