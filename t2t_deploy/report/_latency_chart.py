"""The chart of latencies: a density for each case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from t2t_deploy.report._document import Case, cases_of_batch
from t2t_deploy.report._drawing import (
    AXIS_HEIGHT,
    EDGE,
    ROW_HEIGHT,
    Layout,
    Scale,
    figure,
    fitting_scale,
    group,
    horizontal_axis,
    line,
    row_label,
    svg,
)
from t2t_deploy.report._markup import Markup, element, number

_PLACES = 160
_DRAWN = (0.5, 99.0)
"""Percentiles between which samples are drawn."""


def latency_chart(cases: Sequence[Case], batch: int, *, first: bool) -> Markup:
    """How long calls took, a density for each case, the fastest at the top.

    first: of several such charts; it alone is explained, here as below.
    """
    rows = sorted(cases_of_batch(cases, batch), key=lambda case: case.p50_ms)

    def draw(layout: Layout) -> Markup:
        # what the slowest hundredth needs would leave no room for the others
        graph_io = [edge for case in rows for edge in np.percentile(_samples(case), _DRAWN)]
        scale = fitting_scale(graph_io, EDGE, layout.width - EDGE, ticks=6 if layout.named else 4)
        bottom = len(rows) * ROW_HEIGHT
        unit = "ms, logarithmic" if scale.log else "ms"
        parts = horizontal_axis(layout, scale, 0, bottom, unit)
        for index, case in enumerate(rows):
            top, latency = index * ROW_HEIGHT, case.result.latency_ms
            assert latency is not None
            middle = top + 33
            marks = [
                element(
                    "path",
                    d=_density(case, scale),
                    class_="density",
                    transform=f"translate(0 {number(middle)})",
                ),
                *(
                    line(scale(at), middle - 5, scale(at), middle + 5, "percentile")
                    for at in (latency.p90, latency.p99)
                ),
                line(scale(latency.p50), middle - 12, scale(latency.p50), middle + 12, "median"),
            ]
            samples = _samples(case)
            told = (
                f"{case.name}: p50 {latency.p50:.2f}, p90 {latency.p90:.2f}, p99 {latency.p99:.2f} "
                f"ms; {samples.size} samples from {samples.min():.2f} to {samples.max():.2f} ms"
            )
            value = f"{latency.p50:.2f} ms"
            parts += [
                group(case, *marks, title=told),
                *row_label(layout, top, case, value, unstable=case.result.unstable),
            ]
        return svg(layout, bottom + AXIS_HEIGHT, f"Latency at batch {batch}", parts)

    return figure(
        f"Latency, batch {batch}",
        "Each shape is the density of a case's samples, all of them as high; the slowest hundredth "
        "is not drawn. The long line is the median, the short ones are the 90th and 99th "
        "percentile. Left is faster; the axis need not begin at zero."
        if first
        else None,
        draw,
    )


def _density(case: Case, scale: Scale) -> str:
    """Outline of the samples' density, mirrored at y = 0, by a Gaussian kernel on the drawing."""
    samples = _samples(case)
    low, high = np.percentile(samples, _DRAWN)
    drawn = samples[(samples >= low) & (samples <= high)]
    places = np.array([scale(float(value)) for value in drawn])
    # Silverman's rule; what is narrower than a line is drawn as one
    width = max(1.06 * float(places.std()) * places.size**-0.2, 1.2)
    first = max(scale.start, float(places.min()) - 3 * width)
    last = min(scale.end, float(places.max()) + 3 * width)
    at = np.linspace(first, last, _PLACES)
    density = np.exp(-0.5 * ((at[:, None] - places[None, :]) / width) ** 2).sum(axis=1)
    half = 11.0 * density / density.max()
    above = [f"{number(x)} {number(-h)}" for x, h in zip(at, half, strict=True)]
    below = [f"{number(x)} {number(h)}" for x, h in zip(at[::-1], half[::-1], strict=True)]
    return "M" + "L".join(above + below) + "Z"


def _samples(case: Case) -> np.ndarray:
    assert case.result.latency_ms is not None
    return np.asarray(case.result.latency_ms.samples, dtype=np.float64)
