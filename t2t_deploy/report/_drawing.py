"""What the charts share: the frame, axes, labels and marks, in SVG that the style sheet colours.

A chart is drawn twice, wide and narrow, and the style sheet shows one: text that is scaled down to
a phone's width cannot be read. Sizes are CSS pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from t2t_deploy.report._document import Case
from t2t_deploy.report._markup import Markup, element, number
from t2t_deploy.report._scale import Scale

TEXT_HEIGHT = 16.0
ROW_HEIGHT = 50.0
"""Of a case that has a row of its own, its label included."""
AXIS_HEIGHT = 2 * TEXT_HEIGHT + 4
"""Below a chart: the values of a horizontal axis, and the unit."""
EDGE = 10.0
"""Room left and right of what is drawn."""
_CHARACTER_WIDTH = 7.0  # of the average character at the charts' 12 px, a little too much


@dataclass(frozen=True, slots=True)
class Layout:
    """How much room a chart has, and whether names fit beside its marks."""

    width: float
    named: bool


WIDE = Layout(560.0, named=True)
NARROW = Layout(340.0, named=False)

Draw = Callable[[Layout], Markup]


def figure(title: str, caption: str | None, draw: Draw) -> Markup:
    """A chart with its title and what its marks mean; None where another one said it."""
    return element(
        "figure",
        element("h3", title),
        element("div", draw(WIDE), class_="wide"),
        element("div", draw(NARROW), class_="narrow"),
        None if caption is None else element("figcaption", caption),
    )


def svg(layout: Layout, height: float, label: str, parts: Iterable[Markup]) -> Markup:
    """A drawing; ``label`` is what a screen reader says of it."""
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {number(layout.width)} {number(height)}",
        width=layout.width,
        height=height,
        role="img",
        aria_label=label,
    )


def text(x: float, y: float, words: str, class_: str = "", anchor: str | None = None) -> Markup:
    """Words with their baseline at y. anchor: start, middle or end."""
    return element("text", words, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def group(case: Case, *parts: Markup, title: str) -> Markup:
    """Marks of one case, in its colour; ``title`` is shown when pointed at."""
    return element(
        "g", element("title", title), *parts, class_=f"case {case.colour}", data_series=case.number
    )


def row_label(
    layout: Layout, top: float, case: Case, value: str, *, unstable: bool = False
) -> tuple[Markup, Markup]:
    """Above a row's marks: whose they are, and the figure."""
    words = f"{value} · unstable" if unstable else value
    room = layout.width - 2 * EDGE - _CHARACTER_WIDTH * (len(words) + 3)
    return (
        text(EDGE, top + 15, shortened(f"#{case.number} {case.name}", room), "name"),
        text(layout.width - EDGE, top + 15, words, "value warn" if unstable else "value", "end"),
    )


def case_key(layout: Layout, case: Case) -> str:
    """What stands beside a mark: the number, and the name where there is room."""
    return f"#{case.number} {case.name}" if layout.named else f"#{case.number}"


def shortened(words: str, width: float) -> str:
    """Words that fit a width; the middle is left out, since ends tell files apart."""
    room = max(int(width / _CHARACTER_WIDTH), 5)
    if len(words) <= room:
        return words
    tail = (room - 1) // 2
    return f"{words[: room - 1 - tail]}…{words[-tail:]}"


def width_of(words: str) -> float:
    """About as wide as the words are."""
    return len(words) * _CHARACTER_WIDTH


def horizontal_axis(
    layout: Layout, scale: Scale, top: float, bottom: float, unit: str
) -> list[Markup]:
    """Grid lines from top to bottom, and their values below, the last with the unit."""
    parts = []
    for value in _without_crowding(scale):
        x = scale(value)
        parts.append(line(x, top, x, bottom, "grid"))
        words = figure_of(value)
        # a drawing may end where its scale does: there they stand inside
        anchor, half = "middle", width_of(words) / 2
        if x - half < 0:
            anchor = "start"
        elif x + half > layout.width:
            anchor = "end"
        parts.append(text(x, bottom + TEXT_HEIGHT, words, "tick", anchor))
    parts.append(text(scale.end, bottom + 2 * TEXT_HEIGHT, unit, "unit", "end"))
    return parts


def vertical_axis(scale: Scale, left: float, right: float) -> list[Markup]:
    """Grid lines from left to right, and their values at the left."""
    parts = []
    for value in scale.ticks:
        y = scale(value)
        parts.append(line(left, y, right, y, "grid"))
        words = power_of_ten(value) if scale.log else figure_of(value)
        parts.append(text(left - 6, y + 4, words, "tick", "end"))
    return parts


def figure_of(value: float) -> str:
    """A number on an axis."""
    return f"{value:,.6g}"


def power_of_ten(value: float) -> str:
    """An error on an axis, such as 1e-5."""
    digits, _, exponent = f"{value:.0e}".partition("e")
    return f"{digits}e{int(exponent)}"


def marker(x: float, y: float, precision: str) -> Markup:
    """The place of a case; the shape tells the precision, for those to whom colours do not."""
    size = 5.0
    shapes = {
        "fp32": element("circle", cx=x, cy=y, r=size, class_="mark"),
        "fp16": _polygon(x, y, ((0, -6.5), (6, 4), (-6, 4))),
        "bf16": _polygon(x, y, ((0, 6.5), (6, -4), (-6, -4))),
        "int8": _polygon(x, y, ((0, -6.5), (6.5, 0), (0, 6.5), (-6.5, 0))),
        "int8-weights": _polygon(x, y, ((-6, -6), (6, 6), (6, -6), (-6, 6))),
        "fp8-weights": _polygon(x, y, ((-6, -6), (6, 6), (-6, 6), (6, -6))),
    }
    square = element("rect", x=x - size, y=y - size, width=2 * size, height=2 * size, class_="mark")
    return shapes.get(precision, square)


def _polygon(x: float, y: float, corners: Iterable[tuple[float, float]]) -> Markup:
    places = "L".join(f"{number(x + dx)} {number(y + dy)}" for dx, dy in corners)
    return element("path", d=f"M{places}Z", class_="mark")


def _without_crowding(scale: Scale) -> list[float]:
    """The ticks, less those whose words would touch the one before."""
    kept: list[float] = []
    for value in scale.ticks:
        room = (len(figure_of(value)) + 2) * _CHARACTER_WIDTH
        if not kept or abs(scale(value) - scale(kept[-1])) >= room:
            kept.append(value)
    return kept
