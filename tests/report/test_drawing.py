"""Elements of SVG, and the scales and labels that they are placed by."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from t2t_deploy.report._drawing import (
    element,
    fitting_scale,
    linear_scale,
    log_scale,
    number,
    spread_apart,
)

HOSTILE = "<script>alert('1')</script> & \"more\""


def test_text_is_escaped_and_markup_is_not() -> None:
    assert element("text", HOSTILE, element("title", "<i>")) == (
        "<text>&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; &#34;more&#34;"
        "<title>&lt;i&gt;</title></text>"
    )
    assert isinstance(element("path"), Markup)


def test_an_attribute_cannot_be_left() -> None:
    assert element("g", "", title='"><script>') == '<g title="&#34;&gt;&lt;script&gt;"></g>'


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (
            element("g", *(element("text", str(n)) for n in (1, 2))),
            "<g><text>1</text><text>2</text></g>",
        ),
        (element("line", x1=1.0, y1=2 / 3, class_="grid"), '<line x1="1" y1="0.67" class="grid"/>'),
        (element("g", "Go", title=None, id="x"), '<g id="x">Go</g>'),
        (element("g", "", data_series=3, aria_label="x"), '<g data-series="3" aria-label="x"></g>'),
    ],
)
def test_elements(made: Markup, expected: str) -> None:
    assert made == expected


def test_what_is_added_to_markup_is_text_again() -> None:
    assert element("g", element("g", "x") + "<i>") == "<g><g>x</g>&lt;i&gt;</g>"


def test_coordinates_have_two_decimals() -> None:
    assert [number(value) for value in (1.0, 0.125, -3.14159, 100.0, 0.0)] == [
        *("1", "0.12", "-3.14", "100", "0"),
    ]


positive = st.floats(min_value=1e-9, max_value=1e9)


def test_a_linear_scale_has_round_ends() -> None:
    scale = linear_scale([3.0, 47.0], 0, 100, from_zero=True)
    assert scale.ticks == (0, 10, 20, 30, 40, 50)
    assert (scale(0), scale(25), scale(50)) == (0, 50, 100)
    assert linear_scale([52.0, 58.0], 0, 100, from_zero=False).ticks == (52, 54, 56, 58)
    assert linear_scale([5.0], 0, 100, from_zero=False).ticks == (0, 1, 2, 3, 4, 5)
    assert linear_scale([0.0], 0, 100, from_zero=True).low == 0


def test_a_logarithmic_scale_has_powers_of_ten() -> None:
    scale = log_scale([8e-7, 8e-3], 100, 0)
    assert scale.ticks == pytest.approx((1e-6, 1e-5, 1e-4, 1e-3, 1e-2))
    assert (scale(8e-7 / 1.25), scale(1e-2)) == pytest.approx((100, 0))
    assert scale(1e-3) - scale(1e-2) == pytest.approx(scale(1e-5) - scale(1e-4))


def test_a_short_logarithmic_scale_has_more_marks() -> None:
    assert log_scale([12.0, 180.0], 0, 1).ticks == (10, 20, 50, 100, 200)
    close = log_scale([1.1, 1.2], 0, 1)
    assert (close.low, close.high, close.ticks) == (0.5, 2, (0.5, 1, 2))


def test_values_that_are_far_apart_are_shown_logarithmically() -> None:
    assert not fitting_scale([10.0, 80.0], 0, 1).log
    assert fitting_scale([10.0, 81.0], 0, 1).log
    assert not fitting_scale([0.0, 81.0], 0, 1).log


@given(st.lists(positive, min_size=1), st.booleans())
def test_every_value_has_a_place(values: list[float], from_zero: bool) -> None:
    for scale in (
        linear_scale(values, 10, 500, from_zero=from_zero),
        log_scale(values, 10, 500),
        fitting_scale(values, 10, 500),
    ):
        assert scale.low < scale.high
        for value in values:
            assert 10 - 1e-6 <= scale(value) <= 500 + 1e-6
        assert len(scale.ticks) <= 70


def test_labels_are_moved_apart_and_keep_their_order() -> None:
    assert spread_apart([10, 50, 90], 16, 0, 100) == [10, 50, 90]
    assert spread_apart([52, 50], 16, 0, 100) == [66, 50]
    assert spread_apart([95, 90, 99], 16, 0, 100) == [84, 68, 100]
    assert spread_apart([], 16, 0, 100) == []


@given(st.lists(st.floats(min_value=0, max_value=300), max_size=15))
def test_no_two_labels_touch(positions: list[float]) -> None:
    moved = spread_apart(positions, 16, 0, 300)
    ordered = sorted(moved)
    for before, after in pairwise(ordered):
        assert after - before >= 16 - 1e-9
    assert not moved or (ordered[0] >= -1e-9 and ordered[-1] <= 300 + 1e-9)
    by_position = [
        moved[index] for index in sorted(range(len(positions)), key=lambda i: positions[i])
    ]
    assert by_position == ordered
