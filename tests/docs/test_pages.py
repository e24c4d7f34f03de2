"""What the tutorial, the how-to pages, the troubleshooting and the reference show is printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from t2t_deploy._optional import is_installed

from .console import Command, FileShown, pages, steps_of
from .reader import ROOT, Reader

DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial.md"
# what the hour is about: a tutorial that lost a part would pass for want of it
PARTS = ("export", "quantize", "evaluate", "predict", "package")
# the tutorial has a test of its own
SHOWN = [
    page
    for page in pages(DOCS)
    if page.name != "tutorial.md"
    and any(
        isinstance(step, Command) and "not-run-here" not in step.marks
        for step in steps_of(page.read_text(encoding="utf-8"))
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("page", SHOWN, ids=[page.relative_to(DOCS).as_posix() for page in SHOWN])
def test_a_page_shows_what_is_printed(reader: Callable[..., Reader], page: Path) -> None:
    for package in ("torch", "onnxruntime", "skimage"):
        pytest.importorskip(package)
    marks = {"slow"} | ({"needs-rtx"} if is_installed("tensorrt_rtx") else set())
    somebody = reader(in_process=False, marks=frozenset(marks), beside=True)
    somebody.follow(page)
    assert somebody.typed


def test_the_pages_that_show_commands() -> None:
    """A fence that is misspelt would be skipped in silence: this list would lack its page."""
    assert [page.relative_to(DOCS).as_posix() for page in SHOWN] == [
        "how-to/384-pixels.md",
        "how-to/features.md",
        "how-to/fine-tuned.md",
        "how-to/greys.md",
        "how-to/mmpretrain.md",
        "how-to/own-gpu.md",
        "how-to/triton.md",
        "how-to/web.md",
        "how-to/which-file.md",
        "reference/contract.md",
        "runtimes.md",
        "troubleshooting.md",
    ]


@pytest.mark.parametrize("page", pages(DOCS), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_fences_are_well_formed(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for step in steps_of(text):
        assert isinstance(step, (Command, FileShown))
    # what a reader takes for a command is a console fence: elsewhere nothing begins with '$ '
    commands = [line.strip() for line in text.splitlines() if line.strip().startswith("$ ")]
    shown = [step for step in steps_of(text) if isinstance(step, Command)]
    assert len(shown) == len(commands), commands


@pytest.mark.parametrize(
    "in_process",
    [
        pytest.param(True, id="in this process"),
        pytest.param(False, id="installed program", marks=pytest.mark.slow),
    ],
)
def test_the_tutorial_does_what_it_says(reader: Callable[..., Reader], in_process: bool) -> None:
    for package in ("torch", "onnxruntime", "sklearn"):
        pytest.importorskip(package)
    somebody = reader(in_process=in_process)
    somebody.follow(TUTORIAL)
    programs = [words.split()[:2] for words in somebody.typed]
    assert [part for part in PARTS if ["t2t-deploy", part] in programs] == list(PARTS)
    served = somebody.folder / "models" / "t2t_vit_digits_performer_int8_images" / "config.pbtxt"
    assert served.is_file()
