"""The chart of memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from t2t_deploy.report._document import Case, cases_of_batch
from t2t_deploy.report._drawing import (
    AXIS_HEIGHT,
    EDGE,
    ROW_HEIGHT,
    Layout,
    figure,
    group,
    horizontal_axis,
    linear_scale,
    row_label,
    svg,
)
from t2t_deploy.report._markup import Markup, element, number


def memory_chart(cases: Sequence[Case], batch: int, *, first: bool) -> Markup:
    """Resident memory of each process: before it loaded anything, and at its highest."""
    rows = sorted(
        (case for case in cases_of_batch(cases, batch) if case.result.peak_rss_bytes),
        key=lambda case: case.result.peak_rss_bytes or 0,
    )

    def draw(layout: Layout) -> Markup:
        peaks = [(case.result.peak_rss_bytes or 0) / 1e6 for case in rows]
        scale = linear_scale(peaks, EDGE, layout.width - EDGE, from_zero=True, ticks=6)
        bottom = len(rows) * ROW_HEIGHT
        parts = horizontal_axis(layout, scale, 0, bottom, "MB (10⁶ bytes)")
        for index, (case, peak) in enumerate(zip(rows, peaks, strict=True)):
            top = index * ROW_HEIGHT
            before = (case.result.baseline_rss_bytes or 0) / 1e6
            split = scale(before)
            shape = {"y": top + 24, "height": 14}
            bars = (
                element("rect", x=scale.start, width=split - scale.start, class_="before", **shape),
                element(
                    "rect", x=split, width=max(scale(peak) - split, 1.0), class_="bar", **shape
                ),
            )
            value = f"{peak:.0f} MB, {peak - before:+.0f}"
            parts += [
                group(
                    case, *bars, title=f"{case.name}: {before:.0f} MB before, {peak:.0f} at most"
                ),
                *row_label(layout, top, case, value),
            ]
        return svg(layout, bottom + AXIS_HEIGHT, f"Memory at batch {batch}", parts)

    return figure(
        f"Peak memory, batch {batch}",
        "Resident memory of the case's own process. Pale: before it loaded anything; full: what "
        "runtime and model added at the highest. Shorter is better."
        if first
        else None,
        draw,
    )


def rounds_sparkline(case: Case) -> Markup:
    """The medians of the rounds in their order; the band is 10 % around their median."""
    width, height, edge = 92.0, 26.0, 4.0
    medians = [float(np.median(one.samples_ms)) for one in case.result.rounds]
    middle = float(np.median(medians))
    low, high = min([*medians, 0.85 * middle]), max([*medians, 1.15 * middle])
    step = (width - 2 * edge) / max(len(medians) - 1, 1)

    def y(value: float) -> float:
        return height - edge - (value - low) / (high - low) * (height - 2 * edge)

    places = [(edge + index * step, y(value)) for index, value in enumerate(medians)]
    path = "L".join(f"{number(px)} {number(py)}" for px, py in places)
    band = y(1.05 * middle)
    told = ", ".join(f"{value:.2f}" for value in medians)
    return element(
        "svg",
        element("title", f"medians of the rounds, ms: {told}"),
        element("rect", x=0, y=band, width=width, height=y(0.95 * middle) - band, class_="band"),
        element("path", d=f"M{path}", class_="run"),
        *(element("circle", cx=px, cy=py, r=1.8, class_="mark") for px, py in places),
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=f"medians of the rounds, ms: {told}",
        class_=f"spark {case.colour}",
    )
