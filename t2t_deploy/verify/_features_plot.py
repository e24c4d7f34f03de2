"""The picture of `Features`: token maps of the reference and of artifacts side by side."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from t2t_deploy._optional import require
from t2t_deploy.images import pixels_of
from t2t_deploy.verify._features import (
    PICTURE,
    FeatureColumn,
    Features,
    SeenStage,
    Stage,
    TokenColours,
    token_errors,
    top_classes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, LogNorm
    from matplotlib.figure import Figure

_DPI = 100
# inches
_CELL, _LABELS, _HEAD, _FOOT = 1.6, 2.1, 0.85, 1.2
_BAD = "#d62728"
_GREY = "#666666"
_CAPTION = (
    "Maps: the first three principal components of the reference's tokens at that stage as red, "
    "green and blue, from their 1st to their 99th percentile; the same linear map and scale in "
    "every column of a row. Errors: of each token over all its channels, relative to the root mean "
    "square of the reference's tokens; one logarithmic scale for all; the figure is of the whole "
    "tensor. The reference computes in float64. The class row is not drawn."
)


def features_size(features: Features) -> tuple[int, int]:
    """Width and height of the picture in pixels."""
    columns = 1 + 2 * len(features.columns)
    width = _LABELS + columns * _CELL
    height = _HEAD + len(features.stages) * _CELL + _FOOT
    return round(width * _DPI), round(height * _DPI)


def plot_features(features: Features, path: Path, *, title: str) -> None:
    """Write a PNG: a row for each stage, a column for the reference, two for each artifact.

    Raises MissingDependencyError without matplotlib.
    """
    require("matplotlib")
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    width, height = (pixels / _DPI for pixels in features_size(features))
    # Not pyplot: it keeps figures, and chooses a display.
    figure = Figure(figsize=(width, height), dpi=_DPI)
    FigureCanvasAgg(figure)
    rows, columns = len(features.stages), 1 + 2 * len(features.columns)
    cells = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=_LABELS / width,
        right=1 - 0.1 / width,
        top=1 - _HEAD / height,
        bottom=_FOOT / height,
        wspace=0.06,
        hspace=0.2,
    )
    scale, colours = _error_scale(features), colormaps["viridis"].with_extremes(bad=_BAD)
    for row, stage in enumerate(features.stages):
        seen = [column.seen[row] for column in features.columns]
        _draw_stage(list(cells[row]), stage, seen, features, scale, colours)
    _name_columns(list(cells[0]), features.columns)
    figure.text(0.1 / width, 1 - 0.12 / height, title, va="top", fontsize=11, fontweight="bold")
    bar = figure.add_axes((_LABELS / width, 0.87 / height, 2 * _CELL / width, 0.1 / height))
    figure.colorbar(ScalarMappable(scale, colours), cax=bar, orientation="horizontal")
    bar.minorticks_off()
    bar.tick_params(labelsize=7)
    bar.set_title("error of a token", fontsize=7, loc="left", pad=2)
    _write_caption(figure, width, height)
    figure.savefig(path, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})


def _draw_stage(
    cells: list[Axes],
    stage: Stage,
    seen: list[SeenStage],
    features: Features,
    scale: LogNorm,
    colours: Colormap,
) -> None:
    for axes in cells:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("#dddddd")
    tokens = stage.tokens(stage.wanted)
    if stage.grid is None or tokens is None:
        _label(cells[0], stage, f"{stage.wanted.shape[1]} classes")
        _write(cells[0], _ranking(features.logits))
        for place, (column, one) in enumerate(zip(features.columns, seen, strict=True)):
            _write(cells[1 + 2 * place], _ranking(column.logits))
            _write(cells[2 + 2 * place], _figure_of(one))
        return
    size = f"{stage.grid[0]}×{stage.grid[1]}, {stage.wanted.shape[1]} channels"
    paint = None if stage.layer == PICTURE else TokenColours.of(tokens)
    _label(cells[0], stage, size if paint is None else f"{size}\n{paint.share:.0%} of variance")
    _draw_map(cells[0], stage, stage.wanted, paint)
    for place, one in enumerate(seen):
        mapped, error = cells[1 + 2 * place], cells[2 + 2 * place]
        errors = token_errors(stage, one)
        if one.found is None or errors is None:
            _write(mapped, one.note or "")
            _write(error, _figure_of(one))
            continue
        _draw_map(mapped, stage, one.found, paint)
        error.imshow(np.ma.masked_invalid(errors), cmap=colours, norm=scale)
        error.set_title(_figure_of(one), fontsize=7, pad=2)


def _draw_map(axes: Axes, stage: Stage, values: np.ndarray, paint: TokenColours | None) -> None:
    tokens = stage.tokens(values)
    assert tokens is not None and stage.grid is not None
    if paint is not None:
        axes.imshow(paint(tokens, stage.grid), interpolation="nearest")
        return
    planes = np.nan_to_num(tokens).T.reshape(3, *stage.grid).astype(np.float32)
    axes.imshow(pixels_of(planes), interpolation="nearest")


def _error_scale(features: Features) -> LogNorm:
    """Whole decades, from the smallest relative error of a stage to the largest of a token."""
    from matplotlib.colors import LogNorm

    largest, smallest = 0.0, np.inf
    for column in features.columns:
        for stage, seen in zip(features.stages, column.seen, strict=True):
            errors = token_errors(stage, seen)
            if errors is None or np.isnan(errors).all():
                continue
            largest = max(largest, float(np.nanmax(errors)))
            if seen.rel_l2:
                smallest = min(smallest, seen.rel_l2)
    if not largest > 0:
        return LogNorm(1e-8, 1.0, clip=True)
    graph_io = math.floor(math.log10(min(smallest, largest))), math.ceil(math.log10(largest))
    return LogNorm(10.0 ** graph_io[0], 10.0 ** max(graph_io[1], graph_io[0] + 1), clip=True)


def _name_columns(cells: list[Axes], columns: tuple[FeatureColumn, ...]) -> None:
    names = ["reference"]
    for column in columns:
        names += [column.name, "error"]
    for axes, name in zip(cells, names, strict=True):
        axes.text(
            0.5,
            1.12,
            textwrap.fill(name, 22, break_on_hyphens=True),
            transform=axes.transAxes,
            ha="center",
            va="bottom",
            fontsize=7.5,
            fontweight="bold",
        )


def _label(axes: Axes, stage: Stage, size: str) -> None:
    layer = textwrap.fill(stage.layer, 30)
    axes.text(
        -0.06,
        0.5,
        f"{stage.title}\n{size}",
        transform=axes.transAxes,
        ha="right",
        va="center",
        fontsize=8,
    )
    axes.text(-0.06, 0.02, layer, transform=axes.transAxes, ha="right", fontsize=5.5, color=_GREY)


def _write(axes: Axes, text: str) -> None:
    shown = "\n".join(textwrap.fill(line, 22) for line in text.splitlines())
    axes.text(0.5, 0.5, shown, transform=axes.transAxes, ha="center", va="center", fontsize=8)


def _ranking(logits: np.ndarray) -> str:
    ranked = top_classes(logits)
    if not ranked:
        return "logits are not finite"
    return "\n".join(f"class {index}: {probability:.2%}" for index, probability in ranked)


def _figure_of(seen: SeenStage) -> str:
    if seen.rel_l2 is None:
        return "not comparable"
    return f"rel. error {seen.rel_l2:.1e}" if np.isfinite(seen.rel_l2) else (seen.note or "")


def _write_caption(figure: Figure, width: float, height: float) -> None:
    caption = textwrap.fill(_CAPTION, round(width * 19))
    figure.text(0.1 / width, 0.08 / height, caption, va="bottom", fontsize=6.5, color=_GREY)
