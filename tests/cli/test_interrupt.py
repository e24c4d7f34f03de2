"""A command stopped in the middle leaves the old file or none, and nothing unfinished."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# The real command line; the verification, which runs while the file is still temporary, waits.
STOPPED_WHILE_WRITING = """
import sys, time
from t2t_deploy.cli import main
from t2t_deploy.pipeline import _export

def wait(*arguments):
    print("writing", file=sys.stderr, flush=True)
    time.sleep(120)

_export.verify_file = wait
main()
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
