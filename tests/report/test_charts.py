"""What the charts draw, read back from the drawing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import pytest

from t2t_deploy.bench import CaseResult
from t2t_deploy.report._charts import (
    latency_chart,
    memory_chart,
    rounds_sparkline,
    throughput_chart,
    tradeoff_chart,
)
from t2t_deploy.report._document import Case, measured_cases
from t2t_deploy.report._drawing import Chart, shortened
from t2t_deploy.report._page import _charts
from t2t_deploy.types import Precision
from t2t_deploy.workspace import Manifest

from .conftest import document_of, manifest_of, measured_row


def cases_of(*errors: float | None, batches: Sequence[int] = (1,)) -> list[Case]:
    """Eager at 100 ms, then one file for each error, the second at 50 ms, the third at 33 ms."""
    names = [f"{letter}.onnx" for letter in "abcdef"[: len(errors)]]
    rows = [
        row
        for batch in batches
        for row in (
            measured_row("eager", "reference", p50=100.0 * batch, batch=batch),
            *(
                measured_row(artifact=name, batch=batch, p50=100.0 * batch / (index + 2))
                for index, name in enumerate(names)
            ),
        )
    ]
    pairs = zip(names, errors, strict=True)
    return cases_from(*rows, **{name: manifest_of(name, error) for name, error in pairs})


def cases_from(*rows: CaseResult, **artifacts: Manifest) -> list[Case]:
    return measured_cases(document_of(*rows, artifacts=artifacts))


def wide(drawn: Chart | None) -> str:
    """The drawing for a large window."""
    assert drawn is not None
    return drawn.wide


def groups(drawing: str) -> dict[int, str]:
    """The marks of each series."""
    found = re.findall(r'<g class="case c\d" data-series="(\d+)">(.*?)</g>', drawing)
    return {int(number): marks for number, marks in found}


def attribute(marks: str, kind: str, name: str) -> float:
    """A number of the first element of a class."""
    (element,) = re.findall(rf'<(?:line|rect|circle)[^>]*class="{kind}"[^>]*>', marks)[:1]
    return float(re.findall(rf' {name}="([-\d.]+)"', element)[0])


def mark_of(marks: str) -> tuple[float, float]:
    """Where the mark of a case lies."""
    return attribute(marks, "mark", "cx"), attribute(marks, "mark", "cy")


def test_latencies_stand_in_their_order_and_place() -> None:
    drawing = wide(latency_chart(cases_of(1e-6, 1e-6), 1))
    found = groups(drawing)
    assert list(found) == [3, 2, 1]  # the fastest at the top
    medians = [attribute(found[number], "median", "x1") for number in (3, 2, 1)]
    assert medians == sorted(medians)
    ratios = np.diff(medians) / np.diff([100 / 3, 50.0, 100.0])
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-3), "the axis is linear"
    assert drawing.count('class="density"') == 3
    assert "50.00 ms</text>" in drawing and ">ms</text>" in drawing


def test_latencies_far_apart_are_on_a_logarithmic_axis() -> None:
    rows = (measured_row(p50=1.0), measured_row("eager", "reference", p50=100.0))
    drawing = wide(latency_chart(cases_from(*rows), 1))
    assert "ms, logarithmic</text>" in drawing
    one, hundred = (attribute(groups(drawing)[number], "median", "x1") for number in (1, 2))
    ninety = re.findall(r'class="percentile"', drawing)
    assert len(ninety) == 4 and hundred - one > 300


def test_a_density_has_the_shape_of_its_samples() -> None:
    """Two heaps, the first twice as high: so is the outline."""
    samples = tuple(np.concatenate((np.linspace(9.9, 10.1, 200), np.linspace(19.9, 20.1, 100))))
    row = measured_row(p50=10.0)
    assert row.latency_ms is not None
    row = dataclasses.replace(row, latency_ms=dataclasses.replace(row.latency_ms, samples=samples))
    drawing = wide(latency_chart(cases_from(row), 1))
    (path,) = re.findall(r'<path d="M([^"]*)Z" class="density"', drawing)
    points = np.array([[float(word) for word in pair.split()] for pair in path.split("L")])
    upper = points[: len(points) // 2]
    heights = -upper[:, 1]
    left, right = np.array_split(heights, 2)
    assert heights.max() == 11.0
    assert left.max() == 11.0 and right.max() == pytest.approx(5.5, abs=0.3)
    assert heights[len(heights) // 2] < 0.5, "nothing between them"


def test_unstable_is_said_beside_the_latency() -> None:
    rows = (measured_row(unstable=True), measured_row(artifact="b.onnx"))
    drawing = wide(latency_chart(cases_from(*rows), 1))
    assert re.findall(r"ms( · unstable)?</text>", drawing).count(" · unstable") == 1


def test_one_batch_is_shown_as_bars() -> None:
    drawing = wide(throughput_chart(cases_of(1e-6, 1e-6)))
    widths = [attribute(marks, "bar", "width") for marks in groups(drawing).values()]
    assert list(groups(drawing)) == [3, 2, 1]
    assert np.array(widths) / widths[-1] == pytest.approx([3, 2, 1], rel=1e-3)


def test_several_batches_are_lines() -> None:
    drawing = wide(throughput_chart(cases_of(1e-6, batches=(1, 4, 8))))
    found = groups(drawing)
    assert list(found) == [1, 2]
    for marks in found.values():
        (path,) = re.findall(r'<path d="M([^"]*)" class="run"', marks)
        points = [[float(word) for word in pair.split()] for pair in path.split("L")]
        (x1, y1), (x4, y4), (x8, y8) = points
        assert y1 == y4 == y8, "each picture takes as long in any batch"
        assert (x8 - x4) * 2 == pytest.approx(x4 - x1, abs=0.05), "the batch is logarithmic"
    ticks = re.findall(r'class="tick" text-anchor="middle">(\d+)<', drawing)
    assert ticks == ["1", "4", "8"]


def test_errors_and_speeds_have_their_places() -> None:
    chart = tradeoff_chart(cases_of(1e-6, 1e-4, 1e-3), 1)
    found = groups(wide(chart))
    assert set(found) == {1, 2, 3, 4}
    assert 'class="reference"' in found[1]
    (x2, y2), (x3, y3), (x4, y4) = (mark_of(found[number]) for number in (2, 3, 4))
    assert x2 < x3 < x4 and x4 - x3 == pytest.approx(x3 - x2, abs=0.02)
    assert y2 > y3 > y4 and (y2 - y3) == pytest.approx(2 * (y3 - y4), abs=0.03)
    assert "fp32 limit 1e-5</text>" in wide(chart)


def test_a_name_does_not_lie_on_another_mark() -> None:
    """Two files of one error and nearly one speed: the slower one is named at its left."""
    rows = (measured_row(artifact="a", p50=50.0), measured_row(artifact="b", p50=48.0))
    known = {name: manifest_of(name, 1e-6) for name in ("a", "b")}
    drawing = wide(tradeoff_chart(cases_from(*rows, **known), 1))
    anchors = {
        number: re.findall(r'class="name"( text-anchor="end")?', marks)
        for number, marks in groups(drawing).items()
    }
    assert anchors == {1: [' text-anchor="end"'], 2: [""]}


def test_the_line_joins_what_nothing_beats_in_both() -> None:
    # b is faster than a but no better than c, which is faster still
    drawing = wide(tradeoff_chart(cases_of(1e-6, 1e-3, 1e-4), 1))
    found = groups(drawing)
    (front,) = re.findall(r'<path d="M([^"]*)" class="front"', drawing)
    corners = [tuple(float(word) for word in pair.split()) for pair in front.split("L")]
    assert corners == [mark_of(found[number]) for number in (4, 2)]


def test_what_was_not_verified_is_named_and_not_drawn() -> None:
    chart = tradeoff_chart(cases_of(1e-6, None), 1)
    assert chart is not None
    assert set(groups(wide(chart))) == {1, 2}
    assert "Not verified, and not shown: ort-cpu fp32 cpu." in (chart.caption or "")
    assert tradeoff_chart(cases_of(None), 1) is None
    assert tradeoff_chart(cases_from(measured_row()), 1) is None


def test_shapes_tell_precisions_apart() -> None:
    rows = [measured_row(artifact=p.value, precision=p.value) for p in Precision]
    known = {p.value: manifest_of(p.value, precision=p) for p in Precision}
    drawing = wide(tradeoff_chart(cases_from(*rows, **known), 1))
    shapes = set()
    for marks in groups(drawing).values():
        (name, words) = re.findall(r'<(circle|rect|path)([^>]*)class="mark"', marks)[0]
        heights = [float(y) for y in re.findall(r"[ML][-\d.]+ ([-\d.]+)", words)]
        shapes.add((name, *np.round(np.diff(heights), 2)))
    assert len(shapes) == len(Precision)


def test_memory_is_split_where_the_model_begins() -> None:
    drawing = wide(memory_chart(cases_of(1e-6), 1))
    for marks in groups(drawing).values():
        before, grown = (attribute(marks, kind, "width") for kind in ("before", "bar"))
        assert grown / before == pytest.approx(5.0, rel=1e-2)  # 40 of 240 MB
    assert drawing.count("240 MB, +200</text>") == 2


def test_rounds_in_their_order() -> None:
    (case,) = cases_from(measured_row())
    drawing = rounds_sparkline(case)
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', drawing)]
    assert len(heights) == 5
    assert heights == sorted(heights, reverse=True), "each round is a little slower"
    assert max(heights) - min(heights) < 3, "a percent is not made to look like a drama"


@pytest.mark.parametrize("row", [1, 2, 3], ids=["latency", "tradeoff", "memory"])
def test_only_the_first_of_a_kind_is_explained(row: int) -> None:
    charts = _charts(cases_of(1e-6, batches=(1, 8)))[row]
    assert [chart.caption is None for chart in charts] == [False, True]


def test_long_names_lose_their_middle() -> None:
    assert shortened("short", 100) == "short"
    assert shortened("a" * 30 + "b" * 30, 77) == "aaaaa…bbbbb"
