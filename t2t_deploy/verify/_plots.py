"""PNG files of what was compared: nodes by depth, and what is taken for what."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t2t_deploy._files import atomic_write
from t2t_deploy._optional import require
from t2t_deploy.errors import counted
from t2t_deploy.verify._nodewise import NodeFigures, NodewiseReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"float16": "#1f77b4", "bfloat16": "#1f77b4", "float32": "#c9a227"}
_BAD = "#d62728"
_GREY = "#666666"
_LEADER = {"arrowstyle": "-", "color": _GREY, "linewidth": 0.6}
_GAP_DECADES = 8.0
# The first numbered module in a tensor's name, such as tokens/splits.0 or blocks.12.
_STAGE = re.compile(r"^/?((?:[^/]+/)*?[^/]+\.\d+)(?:/|$)")


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """A figure of so many inches. Raises MissingDependencyError without matplotlib."""
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: it keeps figures, and chooses a display.
    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Write a PNG whole or not at all."""
    with atomic_write(path, kept=True) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None}, **options)


# -- node by node --------------------------------------------------------------------------------


def plot_nodewise(report: NodewiseReport, path: Path, *, title: str) -> None:
    """Write a PNG: above, the error against the unrounded run; below, the largest numbers.

    Nodes stand in the order of evaluation. Raises MissingDependencyError without matplotlib.
    """
    figure = new_figure(12, 7.5, dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    _draw_errors(above, report)
    _draw_ranges(below, report.nodes)
    for axes in (above, below):
        axes.set_yscale("log")
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    _mark_stages(above, below, report.nodes)
    below.set_xlabel("node, in the order of evaluation")
    write_figure(figure, path)


def _draw_errors(axes: Axes, report: NodewiseReport) -> None:
    _draw_nodes(axes, report.nodes, lambda node: node.rel_error)
    broken = [node.index for node in report.nodes if node.rel_error is None]
    if broken:
        axes.plot(
            broken,
            [0.98] * len(broken),
            "|",
            color=_BAD,
            transform=axes.get_xaxis_transform(),
            label="not finite",
            clip_on=False,
        )
    logits = report.logits
    axes.axhline(logits.tolerance, color=_GREY, linestyle="--", linewidth=1)
    _label_line(axes, logits.tolerance, f"tolerance of the logits {logits.tolerance:.0e}")
    if logits.rel_l2 and report.nodes:
        axes.plot(
            [report.nodes[-1].index],
            [logits.rel_l2],
            "D",
            color="black",
            markersize=6,
            label=f"logits against the float64 reference: {logits.rel_l2:.1e}",
        )
    for rank, node in enumerate(sorted(report.largest_jumps[:3], key=lambda node: node.index)):
        late = node.index > 0.7 * len(report.nodes)
        axes.annotate(
            _short(node),
            (node.index, node.rel_error or math.nan),
            xytext=(node.index, 0.16 + 0.08 * rank),
            textcoords=("data", "axes fraction"),
            ha="right" if late else "left",
            fontsize=8,
            color=_GREY,
            arrowprops=_LEADER | {"relpos": (int(late), 1)},
        )
    axes.set_ylabel("relative error against\nthe unrounded run")
    axes.legend(loc="lower right", fontsize=9, framealpha=0.9)


def _draw_ranges(axes: Axes, nodes: Sequence[NodeFigures]) -> None:
    _draw_nodes(axes, nodes, lambda node: node.max_abs)
    largest = max((node.max_abs or 0.0 for node in nodes), default=0.0)
    for dtype, end in {node.dtype: node.dtype_max for node in nodes}.items():
        # A line far above every number would flatten them.
        if math.log10(end) < math.log10(max(largest, 1.0)) + _GAP_DECADES:
            axes.axhline(end, color=_BAD, linestyle="--", linewidth=1)
            _label_line(axes, end, f"{dtype} ends at {end:.5g}", _BAD)
    overflows = [node for node in nodes if node.overflow]
    if overflows:
        (marks,) = axes.plot(
            [node.index for node in overflows],
            [node.max_abs or node.dtype_max for node in overflows],
            "X",
            color=_BAD,
            markersize=9,
            markeredgecolor="white",
            label=f"overflow in {counted(len(overflows), 'tensor')}, first {_short(overflows[0])}",
        )
        axes.legend(handles=[marks], loc="lower left", fontsize=9, framealpha=0.9)
    axes.set_ylabel("largest |x|")


def _mark_stages(above: Axes, below: Axes, nodes: Sequence[NodeFigures]) -> None:
    """Shade every second stage of the model and name all of them on top."""
    starts: list[tuple[str, int]] = []
    for node in nodes:
        match = _STAGE.match(node.tensor)
        if match is not None and (not starts or starts[-1][0] != match[1]):
            starts.append((match[1], node.index))
    if not starts:
        return
    ends = [start for _, start in starts[1:]] + [nodes[-1].index + 1]
    for rank, ((_, start), end) in enumerate(zip(starts, ends, strict=True)):
        for axes in (above, below) if rank % 2 else ():
            axes.axvspan(start - 0.5, end - 0.5, color="#f3f3f3", linewidth=0, zorder=0)
    top = above.secondary_xaxis("top")
    middles = [(start + end) / 2 for (_, start), end in zip(starts, ends, strict=True)]
    top.set_xticks(middles, [name for name, _ in starts], rotation=35, ha="left", fontsize=7)
    top.tick_params(length=0, pad=1, colors=_GREY)
    top.spines["top"].set_visible(False)


def _draw_nodes(
    axes: Axes, nodes: Sequence[NodeFigures], height: Callable[[NodeFigures], float | None]
) -> None:
    """A dot for each node, coloured by its type; zero has no logarithm."""
    for dtype in dict.fromkeys(node.dtype for node in nodes):
        heights = {node.index: height(node) for node in nodes if node.dtype == dtype}
        shown = {index: y for index, y in heights.items() if y}
        label = f"{dtype} tensors"
        axes.plot(
            list(shown), list(shown.values()), ".", markersize=4, color=_COLOURS[dtype], label=label
        )


def _label_line(axes: Axes, y: float, text: str, colour: str = _GREY) -> None:
    axes.annotate(
        text,
        (0.0, y),
        xycoords=("axes fraction", "data"),
        xytext=(4, 3),
        textcoords="offset points",
        fontsize=8,
        color=colour,
    )


def _short(node: NodeFigures) -> str:
    return node.tensor.strip("/").removesuffix("_output_0")


# -- what is taken for what ----------------------------------------------------------------------

_COLUMNS = 3
_PANEL_INCHES = 4.6
# Up to this many classes, each is on the axes and each pair has its number of pictures.
_MOST_NAMED = 20
_RIGHT = "#1f5fa8"
_DARK = 0.5
# Area of the dot of all pictures of a class, and of the smallest that is seen, in points squared.
_DOT_POINTS = 20.0
_SMALLEST_DOT_POINTS = 1.0


def plot_confusion(panels: Sequence[tuple[str, np.ndarray]], path: Path, *, truth: str) -> None:
    """Write a PNG: rows are the true classes, columns the classes found.

    panels: of each artifact, a heading and its (classes, classes) numbers of pictures. truth: what
    the rows are, for their axis. Raises MissingDependencyError without matplotlib.
    """
    columns = min(len(panels), _COLUMNS)
    rows = math.ceil(len(panels) / columns)
    width, height = _PANEL_INCHES * columns, _PANEL_INCHES * 1.1 * rows
    figure = new_figure(width, height, dpi=110, layout="constrained")
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (title, confusion) in zip(cells, panels, strict=False):
        axes.set_title(title, fontsize=9, loc="left")
        _draw_panel(axes, confusion)
        axes.set_xlabel("class found")
        axes.set_ylabel(truth)
    for axes in cells[len(panels) :]:
        axes.set_axis_off()
    write_figure(figure, path)


def _draw_panel(axes: Axes, counts: np.ndarray) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.tick_params(length=0, labelsize=8)
    if len(counts) > _MOST_NAMED:
        _draw_dots(axes, shares)
    else:
        _draw_numbers(axes, counts, shares)
        axes.set_xticks(range(len(counts)))
        axes.set_yticks(range(len(counts)))


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
            color=("white" if shares[row, column] > _DARK else "black") if right else _BAD,
        )


def _draw_dots(axes: Axes, shares: np.ndarray) -> None:
    """A dot for each pair, its area the share: cells would be smaller than a pixel."""
    rows, columns = np.nonzero(shares)
    areas = np.maximum(_DOT_POINTS * shares[rows, columns], _SMALLEST_DOT_POINTS)
    colours = np.where(rows == columns, _RIGHT, _BAD)
    axes.scatter(columns, rows, s=areas, c=colours, linewidths=0)
    axes.set_aspect("equal")
    axes.set_xlim(-0.5, len(shares) - 0.5)
    axes.set_ylim(len(shares) - 0.5, -0.5)
