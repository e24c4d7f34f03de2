"""The picture of a `NodewiseReport`: error and range by depth."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2t_deploy._optional import require
from t2t_deploy.errors import counted
from t2t_deploy.verify._nodewise import NodeFigures, NodewiseReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"float16": "#1f77b4", "bfloat16": "#1f77b4", "float32": "#c9a227"}
_BAD = "#d62728"
_GREY = "#666666"
_GAP_DECADES = 8.0
# The first numbered module in a tensor's name, such as tokens/splits.0 or blocks.12.
_STAGE = re.compile(r"^/?((?:[^/]+/)*?[^/]+\.\d+)(?:/|$)")


def plot_nodewise(report: NodewiseReport, path: Path, *, title: str) -> None:
    """Write a PNG: above, the error against the unrounded run; below, the largest numbers.

    Nodes stand in the order of evaluation. Raises MissingDependencyError without matplotlib.
    """
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: it keeps figures, and chooses a display.
    figure = Figure(figsize=(12, 7.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
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
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw_errors(axes: Axes, report: NodewiseReport) -> None:
    for dtype, nodes in _by_dtype(report.nodes).items():
        shown = [node for node in nodes if node.rel_error]
        axes.plot(
            [node.index for node in shown],
            [node.rel_error or math.nan for node in shown],
            ".",
            markersize=4,
            color=_COLOURS[dtype],
            label=f"{dtype} tensors",
        )
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
    for place, node in enumerate(sorted(report.largest_jumps[:3], key=lambda node: node.index)):
        late = node.index > 0.7 * len(report.nodes)
        axes.annotate(
            _short(node),
            (node.index, node.rel_error or math.nan),
            xytext=(node.index, 0.16 + 0.08 * place),
            textcoords=("data", "axes fraction"),
            ha="right" if late else "left",
            fontsize=8,
            color=_GREY,
            arrowprops={
                "arrowstyle": "-",
                "color": _GREY,
                "linewidth": 0.6,
                "relpos": (1, 1) if late else (0, 1),
            },
        )
    axes.set_ylabel("relative error against\nthe unrounded run")
    axes.legend(loc="lower right", fontsize=9, framealpha=0.9)


def _draw_ranges(axes: Axes, nodes: Sequence[NodeFigures]) -> None:
    for dtype, members in _by_dtype(nodes).items():
        shown = [node for node in members if node.max_abs]
        axes.plot(
            [node.index for node in shown],
            [node.max_abs or math.nan for node in shown],
            ".",
            markersize=4,
            color=_COLOURS[dtype],
        )
    largest = max((node.max_abs or 0.0 for node in nodes), default=0.0)
    for dtype, members in _by_dtype(nodes).items():
        end = members[0].dtype_max
        # A line far above every number would flatten them.
        if math.log10(end) < math.log10(max(largest, 1.0)) + _GAP_DECADES:
            axes.axhline(end, color=_BAD, linestyle="--", linewidth=1)
            _label_line(axes, end, f"{dtype} ends at {end:.5g}", _BAD)
    overflows = [node for node in nodes if node.overflow]
    if overflows:
        axes.plot(
            [node.index for node in overflows],
            [node.max_abs or node.dtype_max for node in overflows],
            "X",
            color=_BAD,
            markersize=9,
            markeredgecolor="white",
            label=f"overflow in {counted(len(overflows), 'tensor')}, first {_short(overflows[0])}",
        )
        axes.legend(loc="lower left", fontsize=9, framealpha=0.9)
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
    graph_io = [start for _, start in starts[1:]] + [nodes[-1].index + 1]
    for place, ((_, start), end) in enumerate(zip(starts, graph_io, strict=True)):
        for axes in (above, below) if place % 2 else ():
            axes.axvspan(start - 0.5, end - 0.5, color="#f3f3f3", linewidth=0, zorder=0)
    top = above.secondary_xaxis("top")
    middles = [(start + end) / 2 for (_, start), end in zip(starts, graph_io, strict=True)]
    top.set_xticks(middles, [name for name, _ in starts], rotation=35, ha="left", fontsize=7)
    top.tick_params(length=0, pad=1, colors=_GREY)
    top.spines["top"].set_visible(False)


def _by_dtype(nodes: Sequence[NodeFigures]) -> dict[str, list[NodeFigures]]:
    found: dict[str, list[NodeFigures]] = {}
    for node in nodes:
        found.setdefault(node.dtype, []).append(node)
    return found


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
