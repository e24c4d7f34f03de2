"""A command stopped in the middle leaves the old file or none, and nothing unfinished."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import pytest

from t2t_deploy import _files
from t2t_deploy._files import temporary_file, temporary_folder

from ..program import PIPES, finish, start
from .command import Run, Temporaries

# The real command line; the verification, which runs while the file is still temporary, waits.
STOPPED_WHILE_WRITING = """
import sys, time
from t2t_deploy.cli import main
from t2t_deploy.commands import _export

def wait(*arguments):
    print("writing", file=sys.stderr, flush=True)
    time.sleep(120)

_export.verify_file = wait
main()
"""

# A command that is told to end, and while it cleans up is told so again.
STOPPED_TWICE = """
import os, signal
from t2t_deploy.cli import _machine, main

signal.signal(signal.{name}, signal.SIG_DFL)  # a shell's background job ignores SIGHUP

def work(**options):
    try:
        os.kill(os.getpid(), signal.{name})
    finally:
        os.kill(os.getpid(), signal.{name})
        print("cleaned up", flush=True)

_machine.variants.callback = work
main(["variants"])
"""

NOT_ON_WINDOWS = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
Stop = Callable[..., tuple[int, str, str]]


@pytest.fixture
def stop(tiny_toml: Path, tmp_path: Path) -> Stop:
    """Start an export and send it a signal while it writes: (exit status, stdout, stderr)."""

    def send(number: int, *options: str) -> tuple[int, str, str]:
        words = ("export", "--config", tiny_toml, "--batch", 1, *options)
        with start(*words, code=STOPPED_WHILE_WRITING, **PIPES) as process:
            assert process.stderr is not None and "writing\n" in process.stderr
            assert list(tmp_path.rglob(".t2t-tmp-*.onnx")), "nothing is being written"
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    return send


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGTERM, 143, "terminated", marks=NOT_ON_WINDOWS),
    ],
)
def test_a_stopped_command(
    stop: Stop, temporaries: Temporaries, number: int, status: int, word: str
) -> None:
    left, out, err = stop(number)
    assert (left, out) == (status, "")
    assert err.strip() == f"error: {word}; nothing half-written was left"
    assert list(Path("artifacts/onnx").iterdir()) == []


def test_ctrl_c_keeps_what_was_there(stop: Stop, temporaries: Temporaries) -> None:
    output = Path("model.onnx")
    output.write_bytes(b"the old file")
    status, out, _ = stop(signal.SIGINT, "-o", "model.onnx", "--json")
    assert status == 130
    assert json.loads(out)["error"]["kind"] == "Interrupted"
    assert output.read_bytes() == b"the old file"
    assert not Path("model.onnx.manifest.json").exists()


@NOT_ON_WINDOWS
def test_a_killed_command_is_pruned(stop: Stop, run: Run, temporaries: Temporaries) -> None:
    status, _, _ = stop(signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert len(temporaries()) == 1
    run("workspace", "prune")
    assert temporaries() == []


@NOT_ON_WINDOWS
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_the_second_signal_does_not_stop_the_clean_up(name: str, status: int) -> None:
    done = finish(code=STOPPED_TWICE.format(name=name))
    assert (done.status, done.out) == (status, "cleaned up\n")
    assert done.err == "error: terminated; nothing half-written was left\n"


@pytest.mark.parametrize("made", [partial(temporary_file, suffix=".x"), temporary_folder])
def test_ctrl_c_in_the_clean_up(
    made: Callable[[Path], AbstractContextManager[Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remove = Mock(wraps=_files.remove, side_effect=[KeyboardInterrupt, DEFAULT])
    monkeypatch.setattr(_files, "remove", remove)
    with pytest.raises(KeyboardInterrupt), made(tmp_path) as path:
        (path / "more" if path.is_dir() else path).write_bytes(b"half")
    assert remove.call_count == 2
    assert list(tmp_path.iterdir()) == []
