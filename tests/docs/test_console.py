"""How pages are read, and when an output is what a page shows."""

from __future__ import annotations

import pytest

from .console import Command, FileShown, difference, steps_of

PAGE = """\
Text, and `inline`.

```console
$ first \\
    --option
one
  two
$ second
```

```python title="made.py"
print("x")
```

1. In a list:

    ``` {.console .exit-3 .slow}
    $ third
    three
    ```

```sh
not looked at
```
"""


def test_a_page_is_read_in_order() -> None:
    assert list(steps_of(PAGE)) == [
        Command("first --option", ("one", "  two"), 4, 0, frozenset()),
        Command("second", (), 8, 0, frozenset()),
        FileShown("made.py", 'print("x")\n'),
        Command("third", ("three",), 18, 3, frozenset({"exit-3", "slow"})),
    ]


@pytest.mark.parametrize(
    "page",
    [
        "```console\nno command\n$ x\n```\n",
        "```console\n```\n",
        "```console\n$ goes on \\\n```\n",
        "``` {.console .not-run-heer}\n$ x\n```\n",
        "``` {.console .exit-1 .exit-2}\n$ x\n```\n",
    ],
)
def test_malformed_fences_are_told(page: str) -> None:
    with pytest.raises(ValueError, match=r"^line "):
        list(steps_of(page))


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ((), "", True),
        ((), "something\n", False),
        (("a",), "a\n", True),
        (("a",), "a\nb\n", False),
        (("a", "b"), "a\n", False),
        (("a", "b"), "b\na\n", False),
        (("1…e-07 of 1e-05",), "1.23e-07 of 1e-05\n", True),
        (("1…e-07 of 1e-05",), "1.23e-07\nof 1e-05\n", False),
        (("1…e-07 of 1e-05",), "1.23e-07 of 6e-02\n", False),
        (("a", "…", "b"), "a\nx\ny\nb\n", True),
        (("a", "…", "b"), "a\nb\n", True),
        (("a", "…", "b"), "a\nx\n", False),
        (("│ 7 │ x │",), "│   7 │     x │\n", True),
        (("│ 7 │ x │",), "│ 8 │ x │\n", False),
        (("x.y",), "xzy\n", False),  # nothing of a page is a pattern but the ellipsis
    ],
)
def test_what_is_the_same(shown: tuple[str, ...], printed: str, same: bool) -> None:
    assert (difference(shown, printed) is None) is same
