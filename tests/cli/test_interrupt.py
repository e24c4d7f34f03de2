"""A command stopped in the middle leaves the old file or none, and nothing unfinished."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from t2t_deploy import _files
from t2t_deploy._files import temporary_file, temporary_folder

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
from t2t_deploy.cli import _variants, main

signal.signal(signal.{name}, signal.SIG_DFL)  # a shell's background job ignores SIGHUP

def work(**options):
    try:
        os.kill(os.getpid(), signal.{name})
    finally:
        os.kill(os.getpid(), signal.{name})
        print("cleaned up", flush=True)

_variants.command.callback = work
main(["variants"])
"""

Stop = Callable[..., tuple[int, str, str]]


@pytest.fixture
def stop(environment: dict[str, str], tiny_toml: Path, tmp_path: Path) -> Stop:
    """Start an export and send it a signal while it writes: (exit status, stdout, stderr)."""

    def send(number: int, *options: str) -> tuple[int, str, str]:
        words = ["export", "--config", str(tiny_toml), "--batch", "1", *options]
        with subprocess.Popen(
            [sys.executable, "-c", STOPPED_WHILE_WRITING, *words],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line == "writing\n":
                    break
            assert list(tmp_path.rglob(".t2t-tmp-*.onnx")), "nothing is being written"
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    return send


def test_ctrl_c(stop: Stop, temporaries: Callable[[], list[Path]]) -> None:
    status, out, err = stop(signal.SIGINT)
    assert (status, out) == (130, "")
    assert err.strip() == "error: interrupted; nothing half-written was left"
    assert list(Path("artifacts/onnx").iterdir()) == []


def test_ctrl_c_keeps_what_was_there(stop: Stop, temporaries: Callable[[], list[Path]]) -> None:
    output = Path("model.onnx")
    output.write_bytes(b"the old file")
    status, out, _ = stop(signal.SIGINT, "-o", "model.onnx", "--json")
    assert status == 130
    assert json.loads(out)["error"]["kind"] == "Interrupted"
    assert output.read_bytes() == b"the old file"
    assert not Path("model.onnx.manifest.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
def test_terminated(stop: Stop, temporaries: Callable[[], list[Path]]) -> None:
    status, out, err = stop(signal.SIGTERM)
    assert (status, out) == (143, "")
    assert err.strip() == "error: terminated; nothing half-written was left"
    assert list(Path("artifacts/onnx").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_what_a_killed_command_leaves_is_pruned(
    stop: Stop, run: Callable[..., object], temporaries: Callable[[], list[Path]]
) -> None:
    status, _, _ = stop(signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert len(temporaries()) == 1
    run("workspace", "prune")
    assert temporaries() == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_the_second_signal_does_not_stop_the_clean_up(
    environment: dict[str, str], name: str, status: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_TWICE.format(name=name)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (status, "cleaned up\n")
    assert done.stderr == "error: terminated; nothing half-written was left\n"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_ctrl_c_stops_in_the_clean_up_is_cleaned_up_all_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    remove = _files.remove

    def stopped_once(path: Path) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        remove(path)

    monkeypatch.setattr(_files, "remove", stopped_once)

    def write_half() -> None:
        made = temporary_file(tmp_path, ".x") if kind == "file" else temporary_folder(tmp_path)
        with made as path:
            (path if kind == "file" else path / "more").write_bytes(b"half")

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []
