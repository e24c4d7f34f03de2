"""The charts: throughput, latency, error against speed, memory, and the rounds of a case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from t2t_deploy.report._document import Case, batches_of, cases_of_batch
from t2t_deploy.report._drawing import (
    AXIS_HEIGHT,
    EDGE,
    TEXT_HEIGHT,
    Chart,
    Layout,
    Row,
    Scale,
    bar,
    case_key,
    chart,
    element,
    fitting_scale,
    group,
    horizontal_axis,
    line,
    linear_scale,
    log_scale,
    marker,
    number,
    path,
    power_of_ten,
    rows_drawing,
    shortened,
    spread_apart,
    svg,
    text,
    vertical_axis,
    width_of,
)
from t2t_deploy.types import TOLERANCES

VERIFIED = (
    "The error is the one in the artifact's manifest: the largest relative L2 distance of the "
    "logits from the float32 reference, over the pictures it was verified on."
)
_POINTS = 160
_DRAWN = (0.5, 99.0)
"""Percentiles between which samples are drawn."""


def latency_chart(cases: Sequence[Case], batch: int) -> Chart:
    """Latency densities, one per case, the fastest at the top."""
    rows = sorted(cases_of_batch(cases, batch), key=lambda case: case.latency.p50)

    def draw(layout: Layout) -> Markup:
        # the slowest hundredth would leave no room for the others
        edges = [edge for case in rows for edge in np.percentile(case.latency.samples, _DRAWN)]
        scale = fitting_scale(edges, EDGE, layout.width - EDGE, ticks=6 if layout.named else 4)
        unit = "ms, logarithmic" if scale.log else "ms"
        return rows_drawing(layout, f"Latency at batch {batch}", scale, unit, rows, _latency_row)

    caption = (
        "Each shape is the density of a case's samples, all of them as high; the slowest hundredth "
        "is not drawn. The long line is the median, the short ones are the 90th and 99th "
        "percentile. Left is faster; the axis need not begin at zero."
    )
    return chart(f"Latency, batch {batch}", caption, draw)


def _latency_row(case: Case, scale: Scale, top: float) -> Row:
    latency, middle = case.latency, top + 33
    marks = [
        element(
            "path",
            d=_density(latency.samples, scale),
            class_="density",
            transform=f"translate(0 {number(middle)})",
        )
    ]
    lines = ((latency.p90, 5, "percentile"), (latency.p99, 5, "percentile"))
    for at, half, kind in (*lines, (latency.p50, 12, "median")):
        marks.append(line(scale(at), middle - half, scale(at), middle + half, kind))
    title = (
        f"{case.name}: p50 {latency.p50:.2f}, p90 {latency.p90:.2f}, p99 {latency.p99:.2f} ms; "
        f"{len(latency.samples)} samples from {min(latency.samples):.2f} to "
        f"{max(latency.samples):.2f} ms"
    )
    return Row(marks, title, f"{latency.p50:.2f} ms", case.result.unstable)


def _density(samples_ms: Sequence[float], scale: Scale) -> str:
    """Outline of the samples' density, mirrored at y = 0, by a Gaussian kernel on the drawing."""
    samples = np.asarray(samples_ms, dtype=np.float64)
    low, high = np.percentile(samples, _DRAWN)
    drawn = samples[(samples >= low) & (samples <= high)]
    xs = np.array([scale(float(value)) for value in drawn])
    # Silverman's rule, at least the width of a line
    width = max(1.06 * float(xs.std()) * xs.size**-0.2, 1.2)
    first = max(scale.start, float(xs.min()) - 3 * width)
    last = min(scale.end, float(xs.max()) + 3 * width)
    at = np.linspace(first, last, _POINTS)
    density = np.exp(-0.5 * ((at[:, None] - xs[None, :]) / width) ** 2).sum(axis=1)
    half = 11.0 * density / density.max()
    above = [f"{number(x)} {number(-h)}" for x, h in zip(at, half, strict=True)]
    below = [f"{number(x)} {number(h)}" for x, h in zip(at[::-1], half[::-1], strict=True)]
    return "M" + "L".join(above + below) + "Z"


def memory_chart(cases: Sequence[Case], batch: int) -> Chart:
    """Resident memory of each process: before loading, and at its highest."""
    rows = sorted(
        (case for case in cases_of_batch(cases, batch) if case.peak_mb),
        key=lambda case: case.peak_mb,
    )

    def draw(layout: Layout) -> Markup:
        peaks = [case.peak_mb for case in rows]
        scale = linear_scale(peaks, EDGE, layout.width - EDGE, from_zero=True, ticks=6)
        label = f"Memory at batch {batch}"
        return rows_drawing(layout, label, scale, "MB (10⁶ bytes)", rows, _memory_row)

    caption = (
        "Resident memory of the case's own process. Pale: before it loaded anything; full: what "
        "runtime and model added at the highest. Shorter is better."
    )
    return chart(f"Peak memory, batch {batch}", caption, draw)


def _memory_row(case: Case, scale: Scale, top: float) -> Row:
    before, peak = (case.result.baseline_rss_bytes or 0) / 1e6, case.peak_mb
    split = scale(before)
    marks = (
        bar(scale.start, split, top, "before"),
        bar(split, split + max(scale(peak) - split, 1.0), top),
    )
    title = f"{case.name}: {before:.0f} MB before, {peak:.0f} at most"
    return Row(marks, title, f"{peak:.0f} MB, {peak - before:+.0f}")


def rounds_sparkline(case: Case) -> Markup:
    """The medians of the rounds in their order; the band is 10 % around their median."""
    width, height, edge = 92.0, 26.0, 4.0
    medians = case.result.round_medians_ms().tolist()
    middle = float(np.median(medians))
    low, high = min([*medians, 0.85 * middle]), max([*medians, 1.15 * middle])
    step = (width - 2 * edge) / max(len(medians) - 1, 1)
    up = Scale(low, high, height - edge, edge, ())
    points = [(edge + index * step, up(value)) for index, value in enumerate(medians)]
    band = up(1.05 * middle)
    label = f"medians of the rounds, ms: {', '.join(f'{value:.2f}' for value in medians)}"
    marks = (
        element("title", label),
        element("rect", x=0, y=band, width=width, height=up(0.95 * middle) - band, class_="band"),
        path(points, "run"),
        *(element("circle", cx=x, cy=y, r=1.8, class_="mark") for x, y in points),
    )
    return svg(width, height, label, marks, f"spark {case.colour}")


def throughput_chart(cases: Sequence[Case]) -> Chart:
    """Pictures per second: lines over the batch, or bars where there was one batch."""
    batches = batches_of(cases)
    if len(batches) == 1:
        return _throughput_bars(cases, batches[0])
    series: dict[int, list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.result.batch):
        series.setdefault(case.number, []).append(case)

    def draw(layout: Layout) -> Markup:
        # high enough for the names of all series
        height, left = max(300.0, 80.0 + TEXT_HEIGHT * len(series)), 48.0
        right = layout.width - (190.0 if layout.named else 34.0)
        top, bottom = 22.0, height - AXIS_HEIGHT
        up = linear_scale([case.images_per_s for case in cases], bottom, top, from_zero=True)
        ticks = tuple(float(batch) for batch in batches)
        across = Scale(ticks[0], ticks[-1], left + 12, right - 12, ticks, log=True)
        drawn = [*vertical_axis(up, left, right), text(0, 12, "images/s", "unit")]
        for batch in batches:
            drawn.append(text(across(batch), bottom + TEXT_HEIGHT, str(batch), "tick", "middle"))
        drawn.append(text(right, bottom + 2 * TEXT_HEIGHT, "batch", "unit", "end"))
        ends = [up(points[-1].images_per_s) for points in series.values()]
        labels = spread_apart(ends, TEXT_HEIGHT, top, bottom)
        for points, end, label in zip(series.values(), ends, labels, strict=True):
            at = [(across(case.result.batch), up(case.images_per_s)) for case in points]
            speeds = (f"{c.images_per_s:.1f} at batch {c.result.batch}" for c in points)
            case = points[0]
            name = shortened(case_key(layout, case), layout.width - right - 8)
            marks = (
                path(at, "run"),
                *(marker(x, y, case.result.precision) for x, y in at),
                line(at[-1][0] + 7, end, right + 4, label, "leader"),
                text(right + 8, label + 4, name, "name"),
            )
            drawn.append(group(case, *marks, title=f"{case.name}: images/s {', '.join(speeds)}"))
        return svg(layout.width, height, "Throughput against batch", drawn)

    caption = (
        "Pictures over elapsed time. Higher is better; a line that does not rise "
        "gains nothing from a larger batch."
    )
    return chart("Throughput against batch", caption, draw)


def _throughput_bars(cases: Sequence[Case], batch: int) -> Chart:
    rows = sorted(cases, key=lambda case: case.images_per_s, reverse=True)

    def row_of(case: Case, scale: Scale, top: float) -> Row:
        speed, speedup = case.images_per_s, case.result.speedup_vs_eager
        against = "" if speedup is None else f" · {speedup.ratio:.2f} × eager"
        marks = [bar(scale.start, max(scale(speed), scale.start + 1.0), top)]
        return Row(marks, f"{case.name}: {speed:.2f} images/s", f"{speed:.1f}{against}")

    def draw(layout: Layout) -> Markup:
        speeds = [case.images_per_s for case in rows]
        scale = linear_scale(speeds, EDGE, layout.width - EDGE, from_zero=True, ticks=6)
        label = f"Throughput at batch {batch}"
        return rows_drawing(layout, label, scale, "images/s", rows, row_of)

    caption = (
        "Pictures over elapsed time. Longer is better. One batch was measured; with "
        "several, such as --batch 1,8, this becomes a line over the batch."
    )
    return chart(f"Throughput, batch {batch}", caption, draw)


def tradeoff_chart(cases: Sequence[Case], batch: int, error: str = VERIFIED) -> Chart | None:
    """Error against speed; None without known errors. error: what it is, in a sentence."""
    rows = cases_of_batch(cases, batch)
    # a logarithmic axis has no zero, and no error is zero in practice
    known = [(case, case.error) for case in rows if case.error is not None and case.error > 0]
    if not known:
        return None
    limits = sorted({case.limit for case, _ in known if case.limit})

    def draw(layout: Layout) -> Markup:
        height = max(320.0, 90.0 + TEXT_HEIGHT * len(known))
        left, right = 48.0, layout.width - EDGE
        top, bottom = 30.0, height - AXIS_HEIGHT
        # names stand to the right of their marks
        end = right - (110.0 if layout.named else 16.0)
        speeds = [case.images_per_s for case in rows]
        ticks = 6 if layout.named else 4
        across = linear_scale(speeds, left + 8, end, from_zero=True, ticks=ticks)
        up = log_scale([error for _, error in known] + limits, bottom, top)
        drawn = [
            *horizontal_axis(layout, across, top, bottom, "images/s"),
            *vertical_axis(up, left, right),
            text(0, 12, "relative L2 error", "unit"),
            text(right, 12, "better: lower, further right", "unit", "end"),
        ]
        for limit in limits:
            names = ", ".join(one.value for one, t in TOLERANCES.items() if t.rel_l2 == limit)
            words, y = f"{names} limit {power_of_ten(limit)}".strip(), up(limit)
            drawn.append(line(left, y, right, y, "limit"))
            drawn.append(text(right, y - 5, words, "limit-name", "end"))
        for case in rows:
            if case.is_reference:
                x = across(case.images_per_s)
                marks = (
                    line(x, top, x, bottom, "reference"),
                    text(x + 5, top + 28, "eager" if layout.named else f"#{case.number}", "name"),
                )
                title = f"{case.name}: the reference, {case.images_per_s:.1f} images/s"
                drawn.append(group(case, *marks, title=title))
        front = _front(known)
        if len(front) > 1:
            points = [(across(case.images_per_s), up(error)) for case, error in front]
            drawn.append(path(points, "front"))
        labels = spread_apart([up(e) for _, e in known], TEXT_HEIGHT - 2, top + 6, bottom - 6)
        for (case, error), label in zip(known, labels, strict=True):
            x, name = across(case.images_per_s), case_key(layout, case)
            # the name is left of its mark if it does not fit to the right, or would cover a mark
            end = x + 12 + width_of(name)
            fits = end <= layout.width and not any(
                x < across(other.images_per_s) <= end and abs(up(e) - label) < TEXT_HEIGHT / 2 + 5
                for other, e in known
                if other is not case
            )
            if fits:
                label_text = text(x + 11, label + 4, name, "name")
            else:
                label_text = text(x - 11, label + 4, shortened(name, x - left - 12), "name", "end")
            title = f"{case.name}: error {error:.2e}, {case.images_per_s:.1f} images/s"
            drawn.append(
                group(case, marker(x, up(error), case.result.precision), label_text, title=title)
            )
        return svg(layout.width, height, f"Error against speed at batch {batch}", drawn)

    caption = (
        f"{error} Dashed: the largest error allowed. The line joins the cases that no other beats "
        "in both."
    )
    unknown = [case.name for case in rows if case.error is None and not case.is_reference]
    if unknown:
        caption += f" Not verified, and not shown: {', '.join(unknown)}."
    return chart(f"Error against speed, batch {batch}", caption, draw)


def _front(known: Sequence[tuple[Case, float]]) -> list[tuple[Case, float]]:
    """The cases that no other is both faster and more exact than, fastest first."""
    front: list[tuple[Case, float]] = []
    for case, error in sorted(known, key=lambda pair: (-pair[0].images_per_s, pair[1])):
        if not front or error < front[-1][1]:
            front.append((case, error))
    return front
