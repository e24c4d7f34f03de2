"""The charts' frame, axes, labels and marks, in SVG that the style sheet colours, in pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from t2t_deploy.report._document import Case

TEXT_HEIGHT = 16.0
ROW_HEIGHT = 50.0
"""Of a case with its own row, its label included."""
AXIS_HEIGHT = 2 * TEXT_HEIGHT + 4
"""Below a chart: the values of a horizontal axis, and the unit."""
EDGE = 10.0
"""Margin left and right."""
_CHARACTER_WIDTH = 7.0  # of the average character at the charts' 12 px, a little too much


@dataclass(frozen=True, slots=True)
class Layout:
    """The width of a chart, and whether names fit beside its marks."""

    width: float
    named: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, drawn twice. caption: the meaning of its marks; None if another chart has it."""

    title: str
    caption: str | None
    wide: Markup
    narrow: Markup


def chart(title: str, caption: str, draw: Callable[[Layout], Markup]) -> Chart:
    """A chart, drawn for a large window and for a phone, where scaled text is unreadable."""
    return Chart(title, caption, draw(Layout(560.0, named=True)), draw(Layout(340.0, named=False)))


def element(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """An element of SVG; text in it is escaped, `Markup` is not.

    ``class_`` is class, other underscores are hyphens; None leaves an attribute out. Numbers have
    at most two decimals.
    """
    words = ""
    for key, value in attributes.items():
        if value is not None:
            shown = value if isinstance(value, str) else number(value)
            words += f' {key.rstrip("_").replace("_", "-")}="{escape(shown)}"'
    inside = "".join(escape(child) for child in children)
    return Markup(f"<{name}{words}>{inside}</{name}>" if children else f"<{name}{words}/>")


def number(value: float) -> str:
    """A coordinate, with no more digits than a screen shows."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def svg(
    width: float, height: float, label: str, marks: Iterable[Markup], class_: str | None = None
) -> Markup:
    """A drawing; ``label`` is its text for screen readers."""
    return element(
        "svg",
        *marks,
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
        class_=class_,
    )


def text(x: float, y: float, words: str, class_: str, anchor: str | None = None) -> Markup:
    """Words with their baseline at y. anchor: start, middle or end."""
    return element("text", words, x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def bar(start: float, end: float, top: float, class_: str = "bar") -> Markup:
    """A bar of a row."""
    return element("rect", x=start, y=top + 24, width=end - start, height=14, class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str, *, closed: bool = False) -> Markup:
    """A line from point to point."""
    corners = "L".join(f"{number(x)} {number(y)}" for x, y in points)
    return element("path", d=f"M{corners}{'Z' * closed}", class_=class_)


def group(case: Case, *marks: Markup, title: str) -> Markup:
    """Marks of one case, in its colour, with ``title`` as tooltip."""
    return element(
        "g", element("title", title), *marks, class_=f"case {case.colour}", data_series=case.number
    )


_CORNERS = {
    "fp16": ((0, -6.5), (6, 4), (-6, 4)),
    "bf16": ((0, 6.5), (6, -4), (-6, -4)),
    "int8": ((0, -6.5), (6.5, 0), (0, 6.5), (-6.5, 0)),
    "int8-weights": ((-6, -6), (6, 6), (6, -6), (-6, 6)),
    "fp8-weights": ((-6, -6), (6, 6), (-6, 6), (6, -6)),
}


def marker(x: float, y: float, precision: str) -> Markup:
    """The mark of a case; its shape encodes the precision without colours."""
    if precision == "fp32":
        return element("circle", cx=x, cy=y, r=5, class_="mark")
    if precision in _CORNERS:
        return path(((x + dx, y + dy) for dx, dy in _CORNERS[precision]), "mark", closed=True)
    return element("rect", x=x - 5, y=y - 5, width=10, height=10, class_="mark")


def case_key(layout: Layout, case: Case) -> str:
    """The label of a mark: the number, and the name if there is room."""
    return f"#{case.number} {case.name}" if layout.named else f"#{case.number}"


def shortened(words: str, width: float) -> str:
    """Words cut to a width in their middle, since the ends of file names differ."""
    room = max(int(width / _CHARACTER_WIDTH), 5)
    if len(words) <= room:
        return words
    tail = (room - 1) // 2
    return f"{words[: room - 1 - tail]}…{words[-tail:]}"


def width_of(words: str) -> float:
    """Approximate width of words."""
    return len(words) * _CHARACTER_WIDTH


def power_of_ten(value: float) -> str:
    """An error on an axis, such as 1e-5."""
    digits, _, exponent = f"{value:.0e}".partition("e")
    return f"{digits}e{int(exponent)}"


def spread_apart(at_y: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved apart in a single sweep, to a gap at least.

    They keep their order, and stay within low..high if there is room for all.
    """
    order = sorted(range(len(at_y)), key=lambda index: at_y[index])
    moved = list(at_y)
    at = low - gap
    for index in order:
        at = max(at_y[index], at + gap)
        moved[index] = at
    at = high + gap
    for index in reversed(order):
        at = min(moved[index], at - gap)
        moved[index] = at
    return moved


LOG_FROM = 8.0
"""Ratio of the largest to the smallest value from which a scale is logarithmic."""
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_LOG_DIGITS = ((1.0,), (1.0, 2.0, 5.0))
_LOG_MARGIN = 1.25


@dataclass(frozen=True, slots=True)
class Scale:
    """Values low..high at the positions start..end; logarithmic ones are of positive values."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        """The position of a value."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def linear_scale(
    values: Sequence[float], start: float, end: float, *, from_zero: bool, ticks: int = 5
) -> Scale:
    """A linear scale around values, its ends round numbers."""
    low, high = (0.0 if from_zero else min(values)), max(values)
    if high <= low:
        low, high = (0.0, high) if high > 0 else (0.0, 1.0)
    step = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(step))
    step = next(power * factor for factor in _STEPS if power * factor >= step * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    marks = tuple(step * index for index in range(first, last + 1))
    return Scale(marks[0], marks[-1], start, end, marks)


def log_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """A logarithmic scale a little wider than positive values, with few marks."""
    low, high = min(values) / _LOG_MARGIN, max(values) * _LOG_MARGIN
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    for digits in _LOG_DIGITS:
        marks = [digit * 10.0**exponent for exponent in exponents for digit in digits]
        inside = tuple(mark for mark in marks if low <= mark <= high)
        if len(inside) >= 3:
            return Scale(low, high, start, end, inside, log=True)
    # no round numbers between them: take those around them
    first = max(index for index, mark in enumerate(marks) if mark <= low * (1 + 1e-9))
    last = min(index for index, mark in enumerate(marks) if mark >= high * (1 - 1e-9))
    around = tuple(marks[first : max(last, first + 1) + 1])
    return Scale(around[0], around[-1], start, end, around, log=True)


def fitting_scale(values: Sequence[float], start: float, end: float, *, ticks: int = 5) -> Scale:
    """Linear, but logarithmic for positive values far apart."""
    if min(values) > 0 and max(values) / min(values) > LOG_FROM:
        return log_scale(values, start, end)
    return linear_scale(values, start, end, from_zero=False, ticks=ticks)


def horizontal_axis(
    layout: Layout, scale: Scale, top: float, bottom: float, unit: str
) -> list[Markup]:
    """Grid lines from top to bottom, and their values below, the last with the unit.

    A value whose label would touch the one before is left out.
    """
    drawn = []
    before: float | None = None
    for value in scale.ticks:
        x, words = scale(value), f"{value:,.6g}"
        if before is not None and abs(x - before) < width_of(words) + 2 * _CHARACTER_WIDTH:
            continue
        before = x
        # inside the drawing at its edges
        anchor, half = "middle", width_of(words) / 2
        if x - half < 0:
            anchor = "start"
        elif x + half > layout.width:
            anchor = "end"
        drawn.append(line(x, top, x, bottom, "grid"))
        drawn.append(text(x, bottom + TEXT_HEIGHT, words, "tick", anchor))
    drawn.append(text(scale.end, bottom + 2 * TEXT_HEIGHT, unit, "unit", "end"))
    return drawn


def vertical_axis(scale: Scale, left: float, right: float) -> list[Markup]:
    """Grid lines from left to right, and their values at the left."""
    drawn = []
    for value in scale.ticks:
        y = scale(value)
        drawn.append(line(left, y, right, y, "grid"))
        words = power_of_ten(value) if scale.log else f"{value:,.6g}"
        drawn.append(text(left - 6, y + 4, words, "tick", "end"))
    return drawn


@dataclass(frozen=True, slots=True)
class Row:
    """The row of a case: marks, tooltip and figure."""

    marks: Sequence[Markup]
    title: str
    value: str
    unstable: bool = False


def rows_drawing(
    layout: Layout,
    label: str,
    scale: Scale,
    unit: str,
    cases: Sequence[Case],
    row_of: Callable[[Case, Scale, float], Row],
) -> Markup:
    """A row for each case over one axis, the name and the figure above its marks.

    row_of: of a case, with the scale and the top of the row.
    """
    bottom = len(cases) * ROW_HEIGHT
    drawn = horizontal_axis(layout, scale, 0.0, bottom, unit)
    for index, case in enumerate(cases):
        top = index * ROW_HEIGHT
        row = row_of(case, scale, top)
        value = f"{row.value} · unstable" if row.unstable else row.value
        room = layout.width - 2 * EDGE - width_of(value) - 3 * _CHARACTER_WIDTH
        name = shortened(f"#{case.number} {case.name}", room)
        kind = "value warn" if row.unstable else "value"
        drawn += [
            group(case, *row.marks, title=row.title),
            text(EDGE, top + 15, name, "name"),
            text(layout.width - EDGE, top + 15, value, kind, "end"),
        ]
    return svg(layout.width, bottom + AXIS_HEIGHT, label, drawn)
