"""The tutorial's commands, taken from its text, do and print what it says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .reader import ROOT, Reader

TUTORIAL = ROOT / "docs" / "tutorial.md"
# what the hour is about: a tutorial that lost a part would pass for want of it
PARTS = ("export", "quantize", "evaluate", "predict", "package")


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
