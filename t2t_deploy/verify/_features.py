"""Token maps of the reference and of artifacts at stages of the model, drawn side by side."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t2t_deploy._preparation import Preparation
from t2t_deploy.types import softmax
from t2t_deploy.verify._plots import new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, LogNorm

PICTURE = "picture"
_TOP = 5
_COMPONENTS = 3
# Of the reference's values: the ends of the colour scale, so that one odd token does not set them.
_PERCENTILES = (1.0, 99.0)
# A component beyond the rank of the tokens is rounding, which no map shall show.
_LEAST_SINGULAR_VALUE = 1e-9


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the model. layer: the reference's, as `reference_layers` names it, or `PICTURE`.

    grid: rows and columns of its tokens, None where it has none. expected: what the reference
    computes, (rows, channels) float64; a row more than the grid has is the class row, the first.
    """

    layer: str
    title: str
    grid: tuple[int, int] | None
    expected: np.ndarray

    def tokens(self, values: np.ndarray) -> np.ndarray | None:
        """Those of the grid, (tokens, channels); None where not all of them are there."""
        if self.grid is None or len(values) != len(self.expected):
            return None
        return values[len(values) - math.prod(self.grid) :]


@dataclass(frozen=True, slots=True)
class SeenStage:
    """What an artifact has there. actual: (rows, channels) float64, None where nothing compares.

    rel_l2: ||a - b|| / ||b|| over the rows that were found, infinite where a number is not finite.
    note: what is not drawn or not compared, and why.
    """

    actual: np.ndarray | None
    rel_l2: float | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class FeatureColumn:
    """An artifact: its stages, in the order of the reference's, and its logits (classes,)."""

    name: str
    seen: tuple[SeenStage, ...]
    logits: np.ndarray


@dataclass(frozen=True, slots=True)
class Features:
    """The stages of one picture in the reference and in artifacts. logits: the reference's.

    preparation: of the picture, which is undone where it is drawn.
    """

    stages: tuple[Stage, ...]
    columns: tuple[FeatureColumn, ...]
    logits: np.ndarray
    preparation: Preparation

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an error that is not finite, or a stage that nothing compares, is null."""
        stages = [
            {
                "artifact": column.name,
                "stage": stage.layer,
                "grid": None if token_errors(stage, seen) is None else list(stage.grid or ()),
                "channels": stage.expected.shape[1],
                "rel_l2": None if seen.rel_l2 is None or math.isinf(seen.rel_l2) else seen.rel_l2,
                "note": seen.note,
            }
            for column in self.columns
            for stage, seen in zip(self.stages, column.seen, strict=True)
        ]
        ranked = [("reference", self.logits), *((c.name, c.logits) for c in self.columns)]
        top = [
            {
                "of": name,
                "classes": [
                    {"index": index, "probability": probability}
                    for index, probability in top_classes(logits)
                ],
            }
            for name, logits in ranked
        ]
        return {"stages": stages, "top": top}


def see_stage(stage: Stage, actual: np.ndarray | None) -> SeenStage:
    """Compare an artifact's (rows, channels) with the reference's; None is a graph without them."""
    expected = stage.expected
    if actual is None:
        return SeenStage(None, None, "not comparable: the graph holds no tensor of it in its units")
    whole = actual.shape == expected.shape
    if not whole and actual.shape != (1, expected.shape[1]):
        reason = f"not comparable: the graph holds {actual.shape}, the reference {expected.shape}"
        return SeenStage(None, None, reason)
    note = None if whole else "the graph computes the class row only: no map"
    bad = int(actual.size - np.isfinite(actual).sum())
    if bad:
        return SeenStage(actual, math.inf, f"{bad:,} of {actual.size:,} numbers are not finite")
    rows = expected[: len(actual)]
    norm = max(float(np.linalg.norm(rows)), np.finfo(np.float64).tiny)
    return SeenStage(actual, float(np.linalg.norm(actual - rows)) / norm, note)


def token_errors(stage: Stage, seen: SeenStage) -> np.ndarray | None:
    """(rows, columns): the error of each token over all channels, NaN where it is not finite.

    Relative to the root mean square of the reference's tokens. None where there is no map.
    """
    actual = None if seen.actual is None else stage.tokens(seen.actual)
    expected = stage.tokens(stage.expected)
    if actual is None or expected is None or stage.grid is None:
        return None
    typical = math.sqrt(float(np.square(expected).sum(axis=1).mean()))
    off = np.linalg.norm(actual - expected, axis=1) / max(typical, np.finfo(np.float64).tiny)
    return np.where(np.isfinite(off), off, np.nan).reshape(stage.grid)


@dataclass(frozen=True, slots=True)
class TokenColours:
    """One linear map of a stage's channels to red, green and blue, for every column.

    mean: (channels,); components: (channels, 3), zero beyond the rank; low, high: the colour scale
    of each, (3,). share: of the variance of the reference's tokens that the components hold.
    """

    mean: np.ndarray
    components: np.ndarray
    low: np.ndarray
    high: np.ndarray
    share: float

    @classmethod
    def of(cls, tokens: np.ndarray) -> TokenColours:
        """The first three principal components of the reference's tokens (tokens, channels)."""
        mean = tokens.mean(axis=0)
        _, values, vectors = np.linalg.svd(tokens - mean, full_matrices=False)
        rank = int((values > _LEAST_SINGULAR_VALUE * values[0]).sum())
        kept = vectors[: min(rank, _COMPONENTS)]
        # either sign is a component: the largest entry is positive
        largest = np.take_along_axis(kept, np.abs(kept).argmax(axis=1)[:, None], axis=1)
        components = np.zeros((tokens.shape[1], _COMPONENTS))
        components[:, : len(kept)] = (kept * np.sign(largest)).T
        total = float(np.square(values).sum())
        share = float(np.square(values[: len(kept)]).sum()) / total if total else 1.0
        low, high = np.percentile((tokens - mean) @ components, _PERCENTILES, axis=0)
        return cls(mean, components, low, high, share)

    def __call__(self, tokens: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """(tokens, channels) -> (rows, columns, 3) of 0 to 1; tokens that are no numbers white."""
        finite = np.isfinite(tokens).all(axis=1, keepdims=True)
        values = (np.where(finite, tokens, 0.0) - self.mean) @ self.components
        width = self.high - self.low
        scaled = np.where(width > 0, (values - self.low) / np.where(width > 0, width, 1.0), 0.5)
        return np.where(finite, scaled.clip(0, 1), 1.0).reshape(*grid, _COMPONENTS)


def top_classes(logits: np.ndarray) -> Sequence[tuple[int, float]]:
    """The five likeliest classes with their probabilities; none where logits are no numbers."""
    if not np.isfinite(logits).all():
        return []
    probabilities = softmax(logits[None])[0]
    order = np.argsort(-probabilities, kind="stable")[:_TOP]
    return [(int(index), float(probabilities[index])) for index in order]


# -- the drawing ---------------------------------------------------------------------------------

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
    """Width and height of the drawing in pixels."""
    columns = 1 + 2 * len(features.columns)
    width = _LABELS + columns * _CELL
    height = _HEAD + len(features.stages) * _CELL + _FOOT
    return round(width * _DPI), round(height * _DPI)


def plot_features(features: Features, path: Path, *, title: str) -> None:
    """Write a PNG: a row for each stage, a column for the reference, two for each artifact.

    Raises MissingDependencyError without matplotlib.
    """
    width, height = (pixels / _DPI for pixels in features_size(features))
    figure = new_figure(width, height, dpi=_DPI)
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable

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
    caption = textwrap.fill(_CAPTION, round(width * 19))
    figure.text(0.1 / width, 0.08 / height, caption, va="bottom", fontsize=6.5, color=_GREY)
    write_figure(figure, path, pil_kwargs={"optimize": True})


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
    tokens = stage.tokens(stage.expected)
    if stage.grid is None or tokens is None:
        _label(cells[0], stage, f"{stage.expected.shape[1]} classes")
        _write(cells[0], _ranking(features.logits))
        for index, (column, one) in enumerate(zip(features.columns, seen, strict=True)):
            _write(cells[1 + 2 * index], _ranking(column.logits))
            _write(cells[2 + 2 * index], _figure_of(one))
        return
    size = f"{stage.grid[0]}×{stage.grid[1]}, {stage.expected.shape[1]} channels"
    paint = None if stage.layer == PICTURE else TokenColours.of(tokens)
    _label(cells[0], stage, size if paint is None else f"{size}\n{paint.share:.0%} of variance")
    _draw_map(cells[0], stage, stage.expected, paint or features.preparation)
    for index, one in enumerate(seen):
        mapped, error = cells[1 + 2 * index], cells[2 + 2 * index]
        errors = token_errors(stage, one)
        if one.actual is None or errors is None:
            _write(mapped, one.note or "")
            _write(error, _figure_of(one))
            continue
        _draw_map(mapped, stage, one.actual, paint or features.preparation)
        error.imshow(np.ma.masked_invalid(errors), cmap=colours, norm=scale)
        error.set_title(_figure_of(one), fontsize=7, pad=2)


def _draw_map(
    axes: Axes, stage: Stage, values: np.ndarray, paint: TokenColours | Preparation
) -> None:
    tokens = stage.tokens(values)
    assert tokens is not None and stage.grid is not None
    if isinstance(paint, TokenColours):
        axes.imshow(paint(tokens, stage.grid), interpolation="nearest")
        return
    planes = np.nan_to_num(tokens).T.reshape(paint.input_shape).astype(np.float32)
    pixels = paint.pixels_of(planes)
    # of other channels than three, the first
    axes.imshow(pixels if paint.channels == 3 else pixels[..., 0], cmap="gray")


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
    lowest, highest = math.floor(math.log10(min(smallest, largest))), math.ceil(math.log10(largest))
    return LogNorm(10.0**lowest, 10.0 ** max(highest, lowest + 1), clip=True)


def _name_columns(cells: list[Axes], columns: tuple[FeatureColumn, ...]) -> None:
    names = ["reference"]
    for column in columns:
        names += [column.name, "error"]
    for axes, name in zip(cells, names, strict=True):
        style = {"ha": "center", "va": "bottom", "fontsize": 7.5, "fontweight": "bold"}
        _text(axes, 0.5, 1.12, textwrap.fill(name, 22), **style)


def _label(axes: Axes, stage: Stage, size: str) -> None:
    _text(axes, -0.06, 0.5, f"{stage.title}\n{size}", ha="right", va="center", fontsize=8)
    layer = textwrap.fill(stage.layer, 30)
    _text(axes, -0.06, 0.02, layer, ha="right", fontsize=5.5, color=_GREY)


def _write(axes: Axes, text: str) -> None:
    shown = "\n".join(textwrap.fill(line, 22) for line in text.splitlines())
    _text(axes, 0.5, 0.5, shown, ha="center", va="center", fontsize=8)


def _text(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Text at a point in shares of the axes."""
    axes.text(x, y, text, transform=axes.transAxes, **style)


def _ranking(logits: np.ndarray) -> str:
    ranked = top_classes(logits)
    if not ranked:
        return "logits are not finite"
    return "\n".join(f"class {index}: {probability:.2%}" for index, probability in ranked)


def _figure_of(seen: SeenStage) -> str:
    if seen.rel_l2 is None:
        return "not comparable"
    return f"rel. error {seen.rel_l2:.1e}" if np.isfinite(seen.rel_l2) else (seen.note or "")
