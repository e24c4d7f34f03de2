"""Where results, progress, notes and errors go.

Results: stdout, as a table or as one JSON object. Everything else: stderr.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from t2t_deploy.errors import CheckFailed, DeployError, MisfitError, counted, one_line, shown_path

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console, RenderableType
    from rich.progress import Progress
    from rich.table import Table
    from rich.text import Text

    from t2t_deploy.workspace import Artifact, WorkspaceCheck


UNLIMITED_WIDTH = 400


@dataclass(slots=True)
class Output:
    """How a command talks; it is also the `Progress` that commands get.

    verbosity: -1 errors only, 0 notes and steps, 1 all progress even without a terminal.
    """

    as_json: bool = False
    verbosity: int = 0
    _bar: Progress | None = None
    _last_text: str = ""

    def result(self, values: dict[str, Any], shown: Iterable[RenderableType]) -> None:
        """Print a command's result: the JSON object, or the lines and tables of ``shown``."""
        self.finish()
        try:
            if self.as_json:
                print(json.dumps(values, indent=1, allow_nan=False), flush=True)
            else:
                console = _console(stderr=False)
                for one in shown:
                    console.print(one, markup=False)
                sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as err:
            # what it still holds goes nowhere: the interpreter's last flush would fail on it again
            with contextlib.suppress(io.UnsupportedOperation), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            raise DeployError(
                f"the work is done and its result cannot be printed: {err.strerror or err}; what "
                "stdout goes to must take it"
            ) from err

    def step(self, text: str) -> None:
        """Say what is being done now."""
        self.finish()
        if self.verbosity >= 0:
            _console(stderr=True).print(f"{one_line(text)} ...", style="dim", markup=False)

    def note(self, text: str) -> None:
        """Say something the user should know."""
        if self.verbosity >= 0:
            _console(stderr=True).print(f"note: {one_line(text)}", style="yellow", markup=False)

    def progress(self, text: str, done: int, total: int) -> None:
        """Move the progress bar; without a terminal, say what is new, if asked to say more."""
        if not sys.stderr.isatty():
            if self.verbosity > 0 and text != self._last_text:
                _console(stderr=True).print(one_line(text), style="dim", markup=False)
            self._last_text = text
            return
        if self.verbosity < 0:
            return
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                console=_console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._bar.add_task(text, total=total)
        self._bar.update(self._bar.task_ids[0], description=text, completed=done, total=total)

    def finish(self) -> None:
        """Take the progress bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def error(self, kind: str, message: str) -> None:
        """Report an error, on stdout too where JSON is expected there."""
        self.finish()
        print(f"error: {one_line(message)}", file=sys.stderr, flush=True)
        if self.as_json:
            print(json.dumps({"error": {"kind": kind, "message": message}}), flush=True)


def has_result(error: BaseException) -> bool:
    """Whether what an interrupted command had got until then was printed."""
    # click raises an error of its own from Ctrl-C's
    return any(getattr(one, "has_result", False) for one in (error, error.__cause__))


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # Nobody's window limits a file or a pipe: there, lines and tables stay whole.
    return Console(
        stderr=stderr, highlight=False, width=None if stream.isatty() else UNLIMITED_WIDTH
    )


# -- parts of results that several commands print ------------------------------------------------

SHOWN_UNREADABLE = 10
"""Pictures without a class that are named; the rest is counted."""


def hint_for(artifact: Artifact) -> str:
    """What to do about an artifact that failed: better pictures first, where it had poor ones."""
    from t2t_deploy.commands import calibration_advice  # as above

    advice = calibration_advice(artifact.manifest)
    locating = f"which layer: t2t-deploy verify --locate {shown_path(artifact.path)}"
    return locating if advice is None else f"{advice}; {locating}"


def table(
    columns: Iterable[str],
    rows: Iterable[Iterable[str]],
    *,
    numbers: Collection[str] = (),
    title: str | None = None,
) -> Table:
    """A table of texts. numbers: the columns that are aligned to the right."""
    from rich.table import Table  # rich is slow to import
    from rich.text import Text

    made = Table(title=title)
    for name in columns:
        made.add_column(name, justify="right" if name in numbers else "left")
    for cells in rows:
        made.add_row(*map(Text, cells))  # square brackets in a str would be read as markup
    return made


def dim(text: str) -> Text:
    """A line of less weight."""
    from rich.text import Text

    return Text(text, style="dim")


def unwrapped(text: str) -> Iterator[RenderableType]:
    """Prints a text for another program, whose lines no window's width may break."""
    click.echo(text)
    yield from ()


def some_of(names: Sequence[str]) -> Iterator[str]:
    """The first of many lines, and how many are left."""
    yield from names[:SHOWN_UNREADABLE]
    left = len(names) - SHOWN_UNREADABLE
    if left > 0:
        yield f"and {left} more; --json names them all"


def verification_line(verification: Mapping[str, Any] | None) -> str:
    """How a verification went."""
    if verification is None:
        return "verification not run: not asked for"
    status = str(verification["status"]).replace("_", " ")
    if verification["rel_l2"] is None:
        return f"verification {status}: {verification['reason']}"
    return (
        f"verification {status}: relative error {verification['rel_l2']:.2e} of "
        f"{verification['tolerance']:.0e} allowed, on "
        f"{counted(len(verification['pictures']), 'picture')}"
    )


def check_lines(found: WorkspaceCheck) -> list[str]:
    """What a check of a workspace found: a line, and one for each problem."""
    leftovers = (
        f"{len(found.leftovers)} files and folders of killed commands; t2t-deploy workspace prune "
        "removes them"
    )
    return [
        f"{counted(found.artifacts, 'artifact')}, {counted(len(found.problems), 'problem')}",
        *map(one_line, found.problems),
        *([leftovers] if found.leftovers else []),
        *unknown_lines(found.unknown),
    ]


def unknown_lines(unknown: Sequence[Path]) -> list[str]:
    """Which temporary files are left because nobody can know here whose they are."""
    if not unknown:
        return []
    return [
        "left, as another machine may be writing them, and files cannot be locked here; remove "
        "them when no command runs:",
        *(one_line(str(path)) for path in unknown),
    ]


def fail_if(check: Mapping[str, Any] | None, *, hint: str | None = None) -> int:
    """Exit status of a finished command: 3, with the reason on stderr, where its check failed.

    hint: what to do about it.
    """
    from t2t_deploy.types import Status  # loads NumPy, which the supervisor must not

    if check is None or check["status"] != Status.FAILED.value:
        return 0
    return fell_short(f"failed: {check['reason']}" + ("" if hint is None else f"; {hint}"))


def fell_short(message: str) -> int:
    """Say on stderr what a finished command's check found; returns the exit status, 3.

    The result is on stdout already, as the JSON object or the table.
    """
    Output().error(CheckFailed.__name__, message)
    return CheckFailed.exit_status


def not_judged(message: str) -> int:
    """Say on stderr why what was asked for was not judged; returns the exit status, 1.

    The result is on stdout already, as of `fell_short`.
    """
    Output().error(MisfitError.__name__, message)
    return MisfitError.exit_status
