"""The chart of throughput: lines over the batch, or bars."""

from __future__ import annotations

from collections.abc import Sequence

from t2t_deploy.report._document import Case, batches_of
from t2t_deploy.report._drawing import (
    AXIS_HEIGHT,
    EDGE,
    ROW_HEIGHT,
    TEXT_HEIGHT,
    Layout,
    Scale,
    case_key,
    figure,
    group,
    horizontal_axis,
    line,
    linear_scale,
    marker,
    row_label,
    shortened,
    spread_apart,
    svg,
    text,
    vertical_axis,
)
from t2t_deploy.report._markup import Markup, element, number


def throughput_chart(cases: Sequence[Case]) -> Markup:
    """Pictures per second: lines over the batch, or bars where there was one batch."""
    batches = batches_of(cases)
    if len(batches) == 1:
        return _throughput_bars(cases, batches[0])

    def draw(layout: Layout) -> Markup:
        # as high as the names of all series need
        height, left = max(300.0, 80.0 + TEXT_HEIGHT * len(_series(cases))), 48.0
        right = layout.width - (190.0 if layout.named else 34.0)
        top, bottom = 22.0, height - AXIS_HEIGHT
        speeds = [case.images_per_s for case in cases]
        up = linear_scale(speeds, bottom, top, from_zero=True)
        places = tuple(float(batch) for batch in batches)
        across = Scale(places[0], places[-1], left + 12, right - 12, places, log=True)
        parts = [*vertical_axis(up, left, right), text(0, 12, "images/s", "unit")]
        for batch in batches:
            x = across(batch)
            parts.append(text(x, bottom + TEXT_HEIGHT, str(batch), "tick", "middle"))
        parts.append(text(right, bottom + 2 * TEXT_HEIGHT, "batch", "unit", "end"))
        series = _series(cases)
        graph_io = [up(points[-1].images_per_s) for points in series]
        labels = spread_apart(graph_io, TEXT_HEIGHT, top, bottom)
        for points, end, label in zip(series, graph_io, labels, strict=True):
            at = [(across(case.result.batch), up(case.images_per_s)) for case in points]
            path = "L".join(f"{number(x)} {number(y)}" for x, y in at)
            told = ", ".join(f"{c.images_per_s:.1f} at batch {c.result.batch}" for c in points)
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
                        shortened(case_key(layout, first), layout.width - right - 8),
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
    rows = sorted(cases, key=lambda case: case.images_per_s, reverse=True)

    def draw(layout: Layout) -> Markup:
        speeds = [case.images_per_s for case in rows]
        scale = linear_scale(speeds, EDGE, layout.width - EDGE, from_zero=True, ticks=6)
        bottom = len(rows) * ROW_HEIGHT
        parts = horizontal_axis(layout, scale, 0, bottom, "images/s")
        for index, case in enumerate(rows):
            top = index * ROW_HEIGHT
            speedup = case.result.speedup_vs_eager
            value = f"{case.images_per_s:.1f}"
            if speedup is not None:
                value += f" · {speedup.ratio:.2f} × eager"
            bar = element(
                "rect",
                x=scale.start,
                y=top + 24,
                width=max(scale(case.images_per_s) - scale.start, 1.0),
                height=14,
                class_="bar",
            )
            parts += [
                group(case, bar, title=f"{case.name}: {case.images_per_s:.2f} images/s"),
                *row_label(layout, top, case, value),
            ]
        return svg(layout, bottom + AXIS_HEIGHT, f"Throughput at batch {batch}", parts)

    return figure(
        f"Throughput, batch {batch}",
        "Pictures per second by the median latency. Longer is better. One batch was measured; with "
        "several, such as --batch 1,8, this becomes a line over the batch.",
        draw,
    )


def _series(cases: Sequence[Case]) -> list[list[Case]]:
    """Cases of one number together, by batch."""
    found: dict[int, list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.result.batch):
        found.setdefault(case.number, []).append(case)
    return list(found.values())
