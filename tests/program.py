"""The program, in this process or one of its own, and what it left."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import t2t_deploy
from t2t_deploy.cli import main

PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@dataclass(frozen=True)
class Done:
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout; whatever else stands there fails."""
        return json.loads(self.out)


def environment() -> dict[str, str]:
    """The package is importable, installed or not; streams are buffered, as for most users."""
    left = ("T2T_DEPLOY_WORKSPACE", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if name not in left}
    root = Path(t2t_deploy.__file__).parents[1]
    return kept | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


def exit_status(*words: object) -> int:
    """Call the command line in this process; signals are handled as before afterwards."""
    caught = [getattr(signal, n) for n in ("SIGTERM", "SIGHUP") if hasattr(signal, n)]
    before = [signal.getsignal(number) for number in caught]
    try:
        with pytest.raises(SystemExit) as leaving:
            main([str(word) for word in words])
    finally:
        for number, handler in zip(caught, before, strict=True):
            signal.signal(number, handler)
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


def called(*words: object, status: int | None = None) -> Done:
    """Call the command line in this process, whose Python code's output is taken.

    status: the one that it must exit with.
    """
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        left = exit_status(*words)
    assert status is None or left == status, err.getvalue()
    return Done(left, out.getvalue(), err.getvalue())


def start(
    *words: object, code: str | None = None, within: Sequence[str] = (), **options: Any
) -> subprocess.Popen[str]:
    """Start the program, or Python code instead of it.

    within: words before the command, as of `control_group`. options: those of Popen.
    """
    what = ("-m", "t2t_deploy") if code is None else ("-c", code)
    given: dict[str, Any] = {"env": environment(), "text": True, **options}
    return subprocess.Popen([*within, sys.executable, *what, *map(str, words)], **given)


def finish(
    *words: object,
    timeout_s: float = 300,
    stdin_text: str | None = None,
    status: int | None = None,
    **options: Any,
) -> Done:
    """Run it to its end; stdin_text: what it finds on stdin. status: it must end with this one."""
    stdin = {} if stdin_text is None else {"stdin": subprocess.PIPE}
    with start(*words, **{**PIPES, **stdin, **options}) as process:
        try:
            out, err = process.communicate(stdin_text, timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert status is None or process.returncode == status, err
    return Done(process.returncode, out, err)
