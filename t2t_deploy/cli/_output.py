"""Where results, progress, notes and errors go.

Results: stdout, as a table or as one JSON object. Everything else: stderr.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t2t_deploy.errors import DeployError, one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress


UNLIMITED_WIDTH = 400


@dataclass(slots=True)
class Output:
    """How a command talks; it is also the `Progress` that commands get.

    verbosity: -1 errors only, 0 notes and steps, 1 all progress even without a terminal.
    """

    as_json: bool = False
    verbosity: int = 0
    _bar: Progress | None = None

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
            _give_up_stdout()
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
        """Move the progress bar; only where somebody can see it."""
        if self.verbosity < 0 or not (sys.stderr.isatty() or self.verbosity > 0):
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


def _give_up_stdout() -> None:
    """Let what it still holds go nowhere: the interpreter's last flush would fail on it again."""
    with contextlib.suppress(io.UnsupportedOperation), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # Nobody's window limits a file or a pipe: there, lines and tables stay whole.
    return Console(
        stderr=stderr, highlight=False, width=None if stream.isatty() else UNLIMITED_WIDTH
    )
