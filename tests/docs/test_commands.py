"""Every command in the documentation is one that the command line takes, also where none is run."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from t2t_deploy.cli._main import cli

from .console import Command, pages, steps_of
from .reader import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *pages(ROOT / "docs")]
_BLOCK = re.compile(
    r"^(?:```+ *(?:sh|bash)\n(.*?)^```+|((?: {4}[^\n]*\n)+))", re.MULTILINE | re.DOTALL
)
_EXTRAS = re.compile(r"(?:t2t-deploy|\.)\[([a-z,]+)\]")
_LANES = re.compile(r"\bmake ([a-z][a-z-]*)(?=[ `\n:])")


@dataclass(frozen=True, slots=True)
class Typed:
    """Words after `t2t-deploy` on one line of a page."""

    page: Path
    words: tuple[str, ...]


def typed(page: Path) -> Iterator[Typed]:
    text = page.read_text(encoding="utf-8")
    lines = [step.words for step in steps_of(text) if isinstance(step, Command)]
    for block in _BLOCK.finditer(text):
        lines += (block[1] or block[2]).replace("\\\n", " ").splitlines()
    for line in lines:
        lexer = shlex.shlex(line.strip(), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:
            continue  # prose with an apostrophe, in an indented block
        yield from _commands(page, words)


def _commands(page: Path, words: list[str]) -> Iterator[Typed]:
    for part in " ".join(shlex.quote(word) for word in words).split("t2t-deploy ")[1:]:
        graph_io = re.split(r" (?:'[|;&<>]+'|->)(?: |$)", f"{part} ")
        yield Typed(page, tuple(shlex.split(graph_io[0])))


ALL = [command for page in FILES for command in typed(page)]


def test_commands_are_found() -> None:
    """A pattern that finds none would pass all that follows."""
    found = {command.words[0] for command in ALL}
    assert found >= {"export", "quantize", "build-trt", "evaluate", "bench", "predict", "package"}


@pytest.mark.parametrize(
    "command", ALL, ids=lambda command: f"{command.page.name}: {' '.join(command.words)}"
)
def test_the_command_line_takes_it(command: Typed) -> None:
    words = [word for word in command.words if word not in ("...", "…")]
    if words in (["--version"], ["--help"]):
        return
    name, *arguments = words
    context = click.Context(cli, info_name="t2t-deploy")
    found = cli.get_command(context, name)
    assert found is not None, f"there is no command {name}"
    # a line that shows one option, and --help
    with contextlib.suppress(click.MissingParameter, click.exceptions.Exit):
        found.make_context(name, arguments, parent=context)


@pytest.mark.parametrize("page", FILES, ids=lambda page: page.name)
def test_what_is_installed_is_there(page: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = _EXTRAS.findall(page.read_text(encoding="utf-8"))
    for names in named:
        assert set(names.split(",")) <= set(extras["optional-dependencies"]), names


@pytest.mark.parametrize("page", FILES, ids=lambda page: page.name)
def test_the_lanes_are_there(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    assert {"demo", "test", "docs"} <= targets
    text = page.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"`[^`\n]+`|^    .*$|^(?:\$ )?make .*$", text, re.MULTILINE))
    assert set(_LANES.findall(code)) <= targets
