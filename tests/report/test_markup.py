from __future__ import annotations

import pytest

from t2t_deploy.report._markup import Markup, element, join, number

HOSTILE = "<script>alert('1')</script> & \"more\""


def test_text_is_escaped_and_markup_is_not() -> None:
    assert element("td", HOSTILE, element("b", "<i>")) == (
        "<td>&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt; &amp; &quot;more&quot;"
        "<b>&lt;i&gt;</b></td>"
    )
    assert isinstance(element("td"), Markup)


def test_an_attribute_cannot_be_left() -> None:
    assert element("td", title='"><script>') == '<td title="&quot;&gt;&lt;script&gt;"></td>'


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (element("tr", (element("td", n) for n in (1, 2)), None), "<tr><td>1</td><td>2</td></tr>"),
        (element("line", x1=1.0, y1=2 / 3, class_="grid"), '<line x1="1" y1="0.67" class="grid"/>'),
        (
            element("button", "Go", type="button", hidden=True, title=None, disabled=False),
            '<button type="button" hidden>Go</button>',
        ),
        (element("td", data_series=3, aria_label="x"), '<td data-series="3" aria-label="x"></td>'),
        (join(("<", element("br")), " & "), "&lt; &amp; <br/>"),
    ],
)
def test_elements(made: Markup, expected: str) -> None:
    assert made == expected


def test_what_is_added_to_markup_is_text_again() -> None:
    assert element("p", element("b", "x") + "<i>") == "<p>&lt;b&gt;x&lt;/b&gt;&lt;i&gt;</p>"


def test_coordinates_have_two_decimals() -> None:
    assert [number(value) for value in (1.0, 0.125, -3.14159, 100.0, 0.0)] == [
        *("1", "0.12", "-3.14", "100", "0"),
    ]
