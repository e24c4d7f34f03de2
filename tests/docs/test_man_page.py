"""The man page is what the commands say of themselves, and roff takes it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import man_page
import pytest

from t2t_deploy.cli._main import _COMMANDS

PAGE = Path(__file__).parents[2] / "docs" / "man" / "t2t-deploy.1"


def test_the_page_is_of_these_commands() -> None:
    # a process of its own: click keeps the first help option that a command is asked for
    line = [sys.executable, man_page.__file__]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
    assert PAGE.read_text(encoding="utf-8") == done.stdout, (
        "a command changed: python tools/man_page.py > docs/man/t2t-deploy.1"
    )


def test_roff_shows_every_command_and_warns_of_nothing() -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed")
    line = [groff, "-man", "-Tutf8", "-P-cbou", "-ww", "-rLL=200n", str(PAGE)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout.replace("\u2010", "-")
    for name in _COMMANDS:
        assert f"t2t-deploy {name} " in shown, name
    assert "--embed-preprocess" in shown
    assert "t2t-deploy build-trt --fp16      " in shown


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("--batch N", "\\-\\-batch N"),
        (".so /etc/passwd", "\\&.so /etc/passwd"),
        ("'quoted'\nnext", "\\&'quoted'\nnext"),
        ('a "b"', "a \\(dqb\\(dq"),
        ("C:\\x", "C:\\ex"),
    ],
)
def test_text_is_no_request(text: str, wanted: str) -> None:
    assert man_page.escaped(text) == wanted
