"""Markup from elements, in which text is escaped by being text.

There is no way to put a string into a page unescaped but `Markup`, whose few uses are literals.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

_VOID = frozenset({"br", "circle", "line", "link", "meta", "path", "rect"})


class Markup(str):
    """A string that is markup already."""

    __slots__ = ()


Child = Markup | str | int | None
Attribute = str | int | float | bool | None


def element(name: str, *children: Child | Iterable[Child], **attributes: Attribute) -> Markup:
    """An element of HTML or SVG.

    children: text is escaped, `Markup` is not, None is left out; iterables are flattened once.
    attributes: ``class_`` is class, other underscores are hyphens; None and False leave it out,
    True gives it no value. Numbers have at most two decimals.
    """
    words = "".join(_attribute(key, value) for key, value in attributes.items())
    inside = "".join(_text(child) for child in _flat(children))
    if name in _VOID:
        return Markup(f"<{name}{words}/>")
    return Markup(f"<{name}{words}>{inside}</{name}>")


def join(parts: Iterable[Child], separator: str = "") -> Markup:
    """Parts one after another, text escaped, the separator too."""
    return Markup(html.escape(separator).join(_text(part) for part in parts))


def number(value: float) -> str:
    """A coordinate, with no more digits than a screen shows."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _attribute(key: str, value: Attribute) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    text = number(value) if isinstance(value, float) else str(value)
    return f' {name}="{html.escape(text)}"'


def _text(child: Child) -> str:
    if child is None:
        return ""
    return child if isinstance(child, Markup) else html.escape(str(child))


def _flat(children: Iterable[Child | Iterable[Child]]) -> Iterable[Child]:
    for child in children:
        if child is None or isinstance(child, (str, int)):
            yield child
        else:
            yield from child
