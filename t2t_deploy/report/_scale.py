"""From values to places on a drawing, with round numbers to label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LOG_FROM = 8.0
"""Ratio of the largest to the smallest value from which a scale is logarithmic."""
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_LOG_DIGITS = ((1.0,), (1.0, 2.0, 5.0))
_LOG_MARGIN = 1.25


@dataclass(frozen=True, slots=True)
class Scale:
    """Values low..high on the places start..end; a logarithmic one takes positive values only."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value."""
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
    step = _round_step((high - low) / ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    marks = tuple(step * index for index in range(first, last + 1))
    return Scale(marks[0], marks[-1], start, end, marks)


def log_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """A logarithmic scale a little wider than positive values; as few marks as will do."""
    low, high = min(values) / _LOG_MARGIN, max(values) * _LOG_MARGIN
    for digits in _LOG_DIGITS:
        marks = _log_marks(low, high, digits)
        inside = tuple(mark for mark in marks if low <= mark <= high)
        if len(inside) >= 3:
            return Scale(low, high, start, end, inside, log=True)
    # too close together for round numbers between them: those around them
    return Scale(marks[0], marks[-1], start, end, marks, log=True)


def fitting_scale(values: Sequence[float], start: float, end: float, *, ticks: int = 5) -> Scale:
    """Linear, but logarithmic for positive values that are far apart."""
    if min(values) > 0 and max(values) / min(values) > LOG_FROM:
        return log_scale(values, start, end)
    return linear_scale(values, start, end, from_zero=False, ticks=ticks)


def spread_apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved as little as a single sweep can, so that none is closer to another than a gap.

    Labels keep their order; they stay within low..high where there is room for all.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    at = low - gap
    for index in order:
        at = max(places[index], at + gap)
        moved[index] = at
    at = high + gap
    for index in reversed(order):
        at = min(moved[index], at - gap)
        moved[index] = at
    return moved


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in _STEPS if power * factor >= step * (1 - 1e-9))


def _log_marks(low: float, high: float, digits: tuple[float, ...]) -> tuple[float, ...]:
    """Marks from the last that is not above low to the first that is not below high."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    marks = [digit * 10.0**exponent for exponent in exponents for digit in digits]
    first = max(index for index, mark in enumerate(marks) if mark <= low * (1 + 1e-9))
    last = min(index for index, mark in enumerate(marks) if mark >= high * (1 - 1e-9))
    return tuple(marks[first : max(last, first + 1) + 1])
