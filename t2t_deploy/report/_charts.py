"""The charts: latencies, throughput, error against speed, memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from t2t_deploy.report._document import Case, batches_of
from t2t_deploy.report._drawing import (
    TEXT_HEIGHT,
    Layout,
    figure,
    group,
    horizontal_axis,
    line,
    marker,
    power_of_ten,
    shortened,
    svg,
    text,
    vertical_axis,
    width_of,
)
from t2t_deploy.report._markup import Markup, element, number
from t2t_deploy.report._scale import (
    Scale,
    fitting_scale,
    linear_scale,
    log_scale,
    spread_apart,
)
from t2t_deploy.types import TOLERANCES

_ROW = 50.0
_EDGE = 10.0
_PLACES = 160
_DRAWN = (0.5, 99.0)
"""Percentiles between which samples are drawn."""
_AXIS = 2 * TEXT_HEIGHT + 4


def latency_chart(cases: Sequence[Case], batch: int, *, first: bool) -> Markup:
    """How long calls took, a density for each case, the fastest at the top.

    first: of several such charts; it alone is explained, here as below.
    """
    rows = sorted(_of_batch(cases, batch), key=_p50)

    def draw(layout: Layout) -> Markup:
        # what the slowest hundredth needs would leave no room for the others
        ends = [edge for case in rows for edge in np.percentile(_samples(case), _DRAWN)]
        scale = fitting_scale(ends, _EDGE, layout.width - _EDGE, ticks=6 if layout.named else 4)
        bottom = len(rows) * _ROW
        unit = "ms, logarithmic" if scale.log else "ms"
        parts = horizontal_axis(layout, scale, 0, bottom, unit)
        for index, case in enumerate(rows):
            top, latency = index * _ROW, case.result.latency_ms
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
                *_row_label(layout, top, case, value, unstable=case.result.unstable),
            ]
        return svg(layout, bottom + _AXIS, f"Latency at batch {batch}", parts)

    return figure(
        f"Latency, batch {batch}",
        "Each shape is the density of a case's samples, all of them as high; the slowest hundredth "
        "is not drawn. The long line is the median, the short ones are the 90th and 99th "
        "percentile. Left is faster; the axis need not begin at zero."
        if first
        else None,
        draw,
    )


def throughput_chart(cases: Sequence[Case]) -> Markup:
    """Pictures per second: lines over the batch, or bars where there was one batch."""
    batches = batches_of(cases)
    if len(batches) == 1:
        return _throughput_bars(cases, batches[0])

    def draw(layout: Layout) -> Markup:
        # as high as the names of all series need
        height, left = max(300.0, 80.0 + TEXT_HEIGHT * len(_series(cases))), 48.0
        right = layout.width - (190.0 if layout.named else 34.0)
        top, bottom = 22.0, height - _AXIS
        speeds = [_speed(case) for case in cases]
        up = linear_scale(speeds, bottom, top, from_zero=True)
        places = tuple(float(batch) for batch in batches)
        across = Scale(places[0], places[-1], left + 12, right - 12, places, log=True)
        parts = [*vertical_axis(up, left, right), text(0, 12, "images/s", "unit")]
        for batch in batches:
            x = across(batch)
            parts.append(text(x, bottom + TEXT_HEIGHT, str(batch), "tick", "middle"))
        parts.append(text(right, bottom + 2 * TEXT_HEIGHT, "batch", "unit", "end"))
        series = _series(cases)
        ends = [up(_speed(points[-1])) for points in series]
        labels = spread_apart(ends, TEXT_HEIGHT, top, bottom)
        for points, end, label in zip(series, ends, labels, strict=True):
            at = [(across(case.result.batch), up(_speed(case))) for case in points]
            path = "L".join(f"{number(x)} {number(y)}" for x, y in at)
            told = ", ".join(f"{_speed(c):.1f} at batch {c.result.batch}" for c in points)
            first = points[0]
            parts.append(
                group(
                    first,
                    element("path", d=f"M{path}", class_="run"),
                    *(marker(x, y, first.result.precision) for x, y in at),
                    line(at[-1][0] + 7, end, right + 4, label, "leader"),
                    text(
                        right + 8,
                        label + 4,
                        shortened(_key(layout, first), layout.width - right - 8),
                        "name",
                    ),
                    title=f"{first.name}: images/s {told}",
                )
            )
        return svg(layout, height, "Throughput against batch", parts)

    return figure(
        "Throughput against batch",
        "Pictures per second by the median latency. Higher is better; a line that does not rise "
        "gains nothing from a larger batch.",
        draw,
    )


def _throughput_bars(cases: Sequence[Case], batch: int) -> Markup:
    rows = sorted(cases, key=_speed, reverse=True)

    def draw(layout: Layout) -> Markup:
        speeds = [_speed(case) for case in rows]
        scale = linear_scale(speeds, _EDGE, layout.width - _EDGE, from_zero=True, ticks=6)
        bottom = len(rows) * _ROW
        parts = horizontal_axis(layout, scale, 0, bottom, "images/s")
        for index, case in enumerate(rows):
            top = index * _ROW
            speedup = case.result.speedup_vs_eager
            value = f"{_speed(case):.1f}"
            if speedup is not None:
                value += f" · {speedup.ratio:.2f} × eager"
            bar = element(
                "rect",
                x=scale.start,
                y=top + 24,
                width=max(scale(_speed(case)) - scale.start, 1.0),
                height=14,
                class_="bar",
            )
            parts += [
                group(case, bar, title=f"{case.name}: {_speed(case):.2f} images/s"),
                *_row_label(layout, top, case, value),
            ]
        return svg(layout, bottom + _AXIS, f"Throughput at batch {batch}", parts)

    return figure(
        f"Throughput, batch {batch}",
        "Pictures per second by the median latency. Longer is better. One batch was measured; with "
        "several, such as --batch 1,8, this becomes a line over the batch.",
        draw,
    )


def tradeoff_chart(cases: Sequence[Case], batch: int, *, first: bool) -> Markup | None:
    """Error against speed; None where no error is known."""
    rows = _of_batch(cases, batch)
    # an error of zero has no place on a logarithmic axis, and none was seen
    known = [(case, case.error) for case in rows if case.error is not None and case.error > 0]
    if not known:
        return None
    references = [case for case in rows if case.is_reference]
    limits = sorted({case.limit for case, _ in known if case.limit})

    def draw(layout: Layout) -> Markup:
        height = max(320.0, 90.0 + TEXT_HEIGHT * len(known))
        left, right = 48.0, layout.width - _EDGE
        top, bottom = 30.0, height - _AXIS
        speeds = [_speed(case) for case in rows]
        # names stand to the right of their marks
        room = 110.0 if layout.named else 16.0
        across = linear_scale(
            speeds, left + 8, right - room, from_zero=True, ticks=6 if layout.named else 4
        )
        up = log_scale([error for _, error in known] + limits, bottom, top)
        parts = [
            *horizontal_axis(layout, across, top, bottom, "images/s"),
            *vertical_axis(up, left, right),
            text(0, 12, "relative L2 error", "unit"),
            text(right, 12, "better: lower, further right", "unit", "end"),
        ]
        for limit in limits:
            names = ", ".join(
                precision.value for precision, t in TOLERANCES.items() if t.rel_l2 == limit
            )
            y = up(limit)
            parts += [
                line(left, y, right, y, "limit"),
                text(
                    right,
                    y - 5,
                    f"{names} limit {power_of_ten(limit)}".strip(),
                    "limit-name",
                    "end",
                ),
            ]
        for case in references:
            x = across(_speed(case))
            parts.append(
                group(
                    case,
                    line(x, top, x, bottom, "reference"),
                    text(x + 5, top + 28, "eager" if layout.named else f"#{case.number}", "name"),
                    title=f"{case.name}: the reference, {_speed(case):.1f} images/s",
                )
            )
        front = _front(known)
        if len(front) > 1:
            steps = "L".join(f"{number(across(_speed(c)))} {number(up(e))}" for c, e in front)
            parts.append(element("path", d=f"M{steps}", class_="front"))
        places = [up(error) for _, error in known]
        labels = spread_apart(places, TEXT_HEIGHT - 2, top + 6, bottom - 6)
        for (case, error), y, label in zip(known, places, labels, strict=True):
            x = across(_speed(case))
            name = _key(layout, case)
            # where the name does not fit to the right of its mark, or would lie on another mark,
            # it stands to the left
            end = x + 12 + width_of(name)
            fits = end <= layout.width and not any(
                x < across(_speed(other)) <= end and abs(place - label) < TEXT_HEIGHT / 2 + 5
                for (other, _), place in zip(known, places, strict=True)
                if other is not case
            )
            parts.append(
                group(
                    case,
                    marker(x, y, case.result.precision),
                    text(
                        x + 11 if fits else x - 11,
                        label + 4,
                        name if fits else shortened(name, x - left - 12),
                        "name",
                        None if fits else "end",
                    ),
                    title=f"{case.name}: error {error:.2e}, {_speed(case):.1f} images/s",
                )
            )
        return svg(layout, height, f"Error against speed at batch {batch}", parts)

    return figure(
        f"Error against speed, batch {batch}",
        "The error is the one in the artifact's manifest: the largest relative L2 distance of the "
        "logits from the float32 reference, over the pictures it was verified on. Dashed: the "
        "largest error allowed. The line joins the cases that no other beats in both."
        + _unknown_errors(rows)
        if first
        else None,
        draw,
    )


def memory_chart(cases: Sequence[Case], batch: int, *, first: bool) -> Markup:
    """Resident memory of each process: before it loaded anything, and at its highest."""
    rows = sorted(
        (case for case in _of_batch(cases, batch) if case.result.peak_rss_bytes),
        key=lambda case: case.result.peak_rss_bytes or 0,
    )

    def draw(layout: Layout) -> Markup:
        peaks = [(case.result.peak_rss_bytes or 0) / 1e6 for case in rows]
        scale = linear_scale(peaks, _EDGE, layout.width - _EDGE, from_zero=True, ticks=6)
        bottom = len(rows) * _ROW
        parts = horizontal_axis(layout, scale, 0, bottom, "MB (10⁶ bytes)")
        for index, (case, peak) in enumerate(zip(rows, peaks, strict=True)):
            top = index * _ROW
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
                *_row_label(layout, top, case, value),
            ]
        return svg(layout, bottom + _AXIS, f"Memory at batch {batch}", parts)

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


def _of_batch(cases: Sequence[Case], batch: int) -> list[Case]:
    return [case for case in cases if case.result.batch == batch]


def _series(cases: Sequence[Case]) -> list[list[Case]]:
    """Cases of one number together, by batch."""
    found: dict[int, list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.result.batch):
        found.setdefault(case.number, []).append(case)
    return list(found.values())


def _front(known: Sequence[tuple[Case, float]]) -> list[tuple[Case, float]]:
    """The cases that no other is both faster and more exact than, fastest first."""
    front: list[tuple[Case, float]] = []
    for case, error in sorted(known, key=lambda pair: (-_speed(pair[0]), pair[1])):
        if not front or error < front[-1][1]:
            front.append((case, error))
    return front


def _unknown_errors(rows: Sequence[Case]) -> str:
    names = [case.name for case in rows if case.error is None and not case.is_reference]
    return f" Not verified, and not shown: {', '.join(names)}." if names else ""


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


def _row_label(
    layout: Layout, top: float, case: Case, value: str, *, unstable: bool = False
) -> tuple[Markup, Markup]:
    """Above a row's marks: whose they are, and the figure."""
    words = f"{value} · unstable" if unstable else value
    room = layout.width - 2 * _EDGE - 7.0 * (len(words) + 3)
    return (
        text(_EDGE, top + 15, shortened(f"#{case.number} {case.name}", room), "name"),
        text(layout.width - _EDGE, top + 15, words, "value warn" if unstable else "value", "end"),
    )


def _key(layout: Layout, case: Case) -> str:
    """What stands beside a mark: the number, and the name where there is room."""
    return f"#{case.number} {case.name}" if layout.named else f"#{case.number}"


def _samples(case: Case) -> np.ndarray:
    assert case.result.latency_ms is not None
    return np.asarray(case.result.latency_ms.samples, dtype=np.float64)


def _p50(case: Case) -> float:
    assert case.result.latency_ms is not None
    return case.result.latency_ms.p50


def _speed(case: Case) -> float:
    assert case.result.images_per_s is not None
    return case.result.images_per_s
