"""The chart of error against speed."""

from __future__ import annotations

from collections.abc import Sequence

from t2t_deploy.report._document import Case, cases_of_batch
from t2t_deploy.report._drawing import (
    AXIS_HEIGHT,
    EDGE,
    TEXT_HEIGHT,
    Layout,
    case_key,
    figure,
    group,
    horizontal_axis,
    line,
    linear_scale,
    log_scale,
    marker,
    power_of_ten,
    shortened,
    spread_apart,
    svg,
    text,
    vertical_axis,
    width_of,
)
from t2t_deploy.report._markup import Markup, element, number
from t2t_deploy.types import TOLERANCES


def tradeoff_chart(cases: Sequence[Case], batch: int, *, first: bool) -> Markup | None:
    """Error against speed; None where no error is known."""
    rows = cases_of_batch(cases, batch)
    # an error of zero has no place on a logarithmic axis, and none was seen
    known = [(case, case.error) for case in rows if case.error is not None and case.error > 0]
    if not known:
        return None
    references = [case for case in rows if case.is_reference]
    limits = sorted({case.limit for case, _ in known if case.limit})

    def draw(layout: Layout) -> Markup:
        height = max(320.0, 90.0 + TEXT_HEIGHT * len(known))
        left, right = 48.0, layout.width - EDGE
        top, bottom = 30.0, height - AXIS_HEIGHT
        speeds = [case.images_per_s for case in rows]
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
            x = across(case.images_per_s)
            parts.append(
                group(
                    case,
                    line(x, top, x, bottom, "reference"),
                    text(x + 5, top + 28, "eager" if layout.named else f"#{case.number}", "name"),
                    title=f"{case.name}: the reference, {case.images_per_s:.1f} images/s",
                )
            )
        front = _front(known)
        if len(front) > 1:
            steps = "L".join(f"{number(across(c.images_per_s))} {number(up(e))}" for c, e in front)
            parts.append(element("path", d=f"M{steps}", class_="front"))
        places = [up(error) for _, error in known]
        labels = spread_apart(places, TEXT_HEIGHT - 2, top + 6, bottom - 6)
        for (case, error), y, label in zip(known, places, labels, strict=True):
            x = across(case.images_per_s)
            name = case_key(layout, case)
            # where the name does not fit to the right of its mark, or would lie on another mark,
            # it stands to the left
            end = x + 12 + width_of(name)
            fits = end <= layout.width and not any(
                x < across(other.images_per_s) <= end and abs(place - label) < TEXT_HEIGHT / 2 + 5
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
                    title=f"{case.name}: error {error:.2e}, {case.images_per_s:.1f} images/s",
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


def _front(known: Sequence[tuple[Case, float]]) -> list[tuple[Case, float]]:
    """The cases that no other is both faster and more exact than, fastest first."""
    front: list[tuple[Case, float]] = []
    for case, error in sorted(known, key=lambda pair: (-pair[0].images_per_s, pair[1])):
        if not front or error < front[-1][1]:
            front.append((case, error))
    return front


def _unknown_errors(rows: Sequence[Case]) -> str:
    names = [case.name for case in rows if case.error is None and not case.is_reference]
    return f" Not verified, and not shown: {', '.join(names)}." if names else ""
