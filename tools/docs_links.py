"""Links of the documentation, in the checkout and on the site."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
# file at the top -> page of the site
TOP_PAGES = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "THREAT_MODEL.md": "threat-model.md",
}
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_FENCE = re.compile(r"(^ *```.*?^ *```[^\n]*$)", re.MULTILINE | re.DOTALL)
# what a browser loads by itself; a plain link is followed by people
_LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?P<src>(?:https?:)?//[^\"'\s>]+)"
    r"|<link\b[^>]*\bhref=[\"']?(?P<href>(?:https?:)?//[^\"'\s>]+)"
)
_HEADING = re.compile(r"^#{1,6} +(.*?) *#*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Link:
    """A link of a Markdown file: a path relative to it, and an anchor, either may be empty."""

    path: str
    anchor: str


def links_of(markdown: str) -> Iterator[Link]:
    """Links and pictures of a text that are not addresses of the web."""
    for part in _FENCE.split(markdown)[::2]:
        for match in _LINK.finditer(part):
            if ":" not in match["target"]:
                path, _, anchor = match["target"].partition("#")
                yield Link(path, anchor)


def anchors_of(markdown: str) -> set[str]:
    """Anchors of headings, as GitHub and the site name them."""
    texts = (match[1] for part in _FENCE.split(markdown)[::2] for match in _HEADING.finditer(part))
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in texts}


def relink(markdown: str, source: PurePosixPath, page: PurePosixPath) -> str:
    """The text of ``source``, a path in the checkout, with links as they must be on ``page``.

    A link to a file that is no page, a module or a test, becomes its bare text, since the site does
    not hold the file; one to a file that is not there is left as it is, for MkDocs to refuse.
    """

    def replaced(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or ":" in target:
            return match[0]
        wanted = os.path.normpath(source.parent / target)
        if wanted in TOP_PAGES:
            inside = TOP_PAGES[wanted]
        elif wanted.startswith("docs/"):
            inside = wanted.removeprefix("docs/")
        elif (ROOT / wanted).exists():
            return match["text"]
        else:
            return match[0]
        new = os.path.relpath(inside, page.parent) + (f"#{anchor}" if anchor else "")
        return f"{match['image']}[{match['text']}]({new})"

    parts = _FENCE.split(markdown)
    # every second part is a fenced block
    return "".join(
        part if index % 2 else _LINK.sub(replaced, part) for index, part in enumerate(parts)
    )


def loaded_from_elsewhere(html: str) -> list[str]:
    """Addresses that a browser would fetch to show a page."""
    return [match["src"] or match["href"] for match in _LOADED.finditer(html)]
