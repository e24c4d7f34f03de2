"""The medians of a case's rounds, small enough for a row of the table."""

from __future__ import annotations

import numpy as np

from t2t_deploy.report._document import Case
from t2t_deploy.report._markup import Markup, element, number


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
