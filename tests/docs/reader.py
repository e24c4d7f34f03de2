"""Somebody who types what a page says."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import t2t_deploy
from t2t_deploy.cli import main

from ..program import environment
from .console import Command, FileShown, difference, steps_of

ROOT = Path(t2t_deploy.__file__).parents[1]
BESIDE = ("tests", "tools", "constraints.txt")


@dataclass(slots=True)
class Reader:
    """Somebody who types what a page says, in order, in a folder of his own.

    in_process: `t2t-deploy` and `python FILE` run in this process, which has imported most of what
    they need; otherwise the installed program is started, as a reader would.
    """

    folder: Path
    in_process: bool
    marks: frozenset[str] = frozenset()
    typed: list[str] = field(default_factory=list)

    def follow(self, page: Path) -> None:
        """Do all of a page that this reader can."""
        self.take(steps_of(page.read_text(encoding="utf-8")), page)

    def take(self, steps: Iterable[Command | FileShown], page: Path) -> None:
        """Do steps of a page: files, and commands that need no more than ``marks``."""
        for step in steps:
            if isinstance(step, FileShown):
                (self.folder / step.name).write_text(step.text, encoding="utf-8")
            elif {mark for mark in step.marks if not mark.startswith("exit-")} <= self.marks:
                self._type(step, page)

    def _type(self, command: Command, page: Path) -> None:
        self.typed.append(command.words)
        status, printed = self._run(command.words)
        where = f"{page.name}:{command.line}: {command.words}"
        assert status == command.status, f"{where}: exit status {status}\n{printed}"
        wrong = difference(command.printed, printed)
        assert wrong is None, f"{where}: {wrong}"

    def _run(self, command: str) -> tuple[int, str]:
        words = shlex.split(command)
        if words[0] == "cd":
            self.folder = self.folder / words[1]
            return 0, ""
        plain = not set(command) & set("|<>;&*?$`")
        if self.in_process and plain and words[0] == "t2t-deploy":
            return self._called(lambda: main(words[1:]))
        if self.in_process and plain and words[0] == "python":
            return self._called(lambda: _run_script(words[1:]))
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        return done.returncode, done.stdout

    def _called(self, call: Callable[[], None]) -> tuple[int, str]:
        printed = io.StringIO()
        before = signal.getsignal(signal.SIGTERM)
        here = Path.cwd()
        status = 0
        os.chdir(self.folder)
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                call()
        except SystemExit as leaving:
            # a text instead of a number would be printed, and is status 1
            status = leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
        finally:
            os.chdir(here)
            signal.signal(signal.SIGTERM, before)
        return status, printed.getvalue()


def _run_script(words: list[str]) -> None:
    path, arguments = sys.path[:], sys.argv
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:
        sys.argv, sys.path[:] = arguments, path


def _environment() -> dict[str, str]:
    """The installed program is `t2t-deploy`, and its Python `python`."""
    programs = Path(sys.executable).parent
    return environment() | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def checkout_in(folder: Path) -> Path:
    """A folder that looks like a checkout, as far as pages need one."""
    checkout = folder / "t2t-deploy"
    checkout.mkdir()
    for name in BESIDE:
        (checkout / name).symlink_to(ROOT / name)
    return checkout
