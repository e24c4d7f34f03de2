"""Links lead somewhere: between the files, to headings, and from the files to the site's pages."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import pytest
from docs_links import TOP_PAGES, anchors_of, links_of, loaded_from_elsewhere, relink

from .console import pages
from .reader import ROOT

FILES = [*sorted(ROOT.glob("*.md")), *pages(ROOT / "docs"), ROOT / "tests" / "digits" / "README.md"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(file: Path) -> None:
    for link in links_of(file.read_text(encoding="utf-8")):
        target = (file.parent / link.path).resolve() if link.path else file
        assert target.is_relative_to(ROOT), link
        # the docs' python.md has anchors that only the site makes
        assert target.exists(), link
        if link.anchor and target.suffix == ".md" and not link.anchor.startswith("t2t_deploy."):
            assert link.anchor in anchors_of(target.read_text(encoding="utf-8")), link


def test_every_page_is_in_the_navigation_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = re.findall(r": ([\w/-]+\.md)", navigation)
    there = [page.relative_to(ROOT / "docs").as_posix() for page in pages(ROOT / "docs")]
    assert sorted(named) == sorted([*there, *TOP_PAGES.values()])


@pytest.mark.parametrize(
    ("source", "page", "text", "wanted"),
    [
        ("README.md", "overview.md", "[a](docs/gpu.md)", "[a](gpu.md)"),
        ("README.md", "overview.md", "![p](docs/budget.png)", "![p](budget.png)"),
        ("docs/bench.md", "bench.md", "[a](../README.md#install)", "[a](overview.md#install)"),
        ("docs/how-to/x.md", "how-to/x.md", "[a](../gpu.md#x)", "[a](../gpu.md#x)"),
        ("docs/gpu.md", "gpu.md", "[code](../t2t_deploy/types.py)", "code"),
        ("docs/gpu.md", "gpu.md", "[a](../nothing.md)", "[a](../nothing.md)"),
        ("docs/gpu.md", "gpu.md", "[a](https://x.org/a) [b](#c)", "[a](https://x.org/a) [b](#c)"),
        ("README.md", "overview.md", "```\n[a](docs/gpu.md)\n```", "```\n[a](docs/gpu.md)\n```"),
    ],
)
def test_links_on_the_site(source: str, page: str, text: str, wanted: str) -> None:
    assert relink(text, PurePosixPath(source), PurePosixPath(page)) == wanted


@pytest.mark.parametrize(
    ("html", "loaded"),
    [
        ('<script src="https://cdn.org/x.js"></script>', ["https://cdn.org/x.js"]),
        ("<link rel=stylesheet href=//fonts.org/css>", ["//fonts.org/css"]),
        ('<img alt="" src="http://x.org/a.png">', ["http://x.org/a.png"]),
        ('<a href="https://x.org">x</a><script src="assets/x.js"></script>', []),
    ],
)
def test_what_a_page_loads(html: str, loaded: list[str]) -> None:
    assert loaded_from_elsewhere(html) == loaded
