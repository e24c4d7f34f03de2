"""Two commands on one workspace at once: real processes, each lock held by one of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from t2t_deploy.errors import ArtifactError, BusyError
from t2t_deploy.workspace import LockPolicy, Workspace, _locks, read_manifest

from ..program import PIPES, start
from .conftest import READING, Commands

HOLDER = """
import sys
from pathlib import Path
from t2t_deploy.workspace import LockPolicy, Workspace
workspace = Workspace(Path(sys.argv[1]), LockPolicy(command="t2t-deploy build-trt"))
with workspace.lock(*sys.argv[2:]):
    print("held", flush=True)
    sys.stdin.read()
"""
WRITER = """
import sys
from pathlib import Path
from t2t_deploy._files import temporary_file
from t2t_deploy.workspace import Workspace
workspace = Workspace(Path(sys.argv[1]))
with temporary_file(workspace.folder("onnx"), ".onnx") as file, workspace.scratch() as folder:
    file.write_bytes(b"half"), (folder / "more").write_bytes(b"half")
    print("writing", flush=True)
    sys.stdin.read()
"""
STORER = """
import sys
from pathlib import Path
from t2t_deploy.types import Precision
from t2t_deploy.workspace import Manifest, Workspace
workspace, name, outputs = Workspace(Path(sys.argv[1])), sys.argv[2], sys.argv[3:]
draft = Manifest("onnx", "", "", 0, "tiny", Precision.FP32, {}, None, "portable", {})
for number in range(15):
    def write(path):
        path.write_text(f"{name} {number}")
        return {}
    workspace.store(draft, write, stem="tiny", output=Path(outputs[0]) if outputs else None)
"""


@contextlib.contextmanager
def running(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A program that said its first word; it ends when its stdin does."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with start(*arguments, code=code, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() != ""
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 0


@pytest.fixture
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace whose locks are refused at once where somebody else holds them."""
    monkeypatch.setattr(_locks, "_GRACE_S", 0)
    return Workspace(tmp_path / "artifacts", LockPolicy(wait=False))


@pytest.mark.parametrize("note", [None, "{", "[]", '{"pid": 5}'])
def test_a_holder_that_left_no_name(impatient: Workspace, note: str | None) -> None:
    folder = impatient.folder(_locks.FOLDER)
    with FileLock(folder / "x.lock"):
        if note is not None:
            (folder / "x.json").write_text(note)
        with pytest.raises(BusyError) as refused, impatient.lock("x"):
            pytest.fail("two have one lock")
    assert str(refused.value) == (
        f"another t2t-deploy (its pid is unknown) on workspace {impatient.root} is busy with what "
        "this command needs; try again when it is done, or leave --no-wait out to wait for it"
    )


def test_a_note_that_cannot_be_written_keeps_nobody_from_a_lock(impatient: Workspace) -> None:
    (impatient.folder(_locks.FOLDER) / "x.json").mkdir()
    with impatient.lock("x"):
        assert _locks.is_locked(impatient.root, "x")


def test_is_locked(impatient: Workspace) -> None:
    assert not _locks.is_locked(impatient.root, "x")
    with impatient.lock("x"):
        assert _locks.is_locked(impatient.root, "x")
    assert not _locks.is_locked(impatient.root, "x")
    # what cannot be asked counts as held
    (impatient.root / _locks.FOLDER / "y.lock").mkdir()
    assert _locks.is_locked(impatient.root, "y")


def test_a_lock_that_cannot_be_made(impatient: Workspace) -> None:
    (impatient.folder(_locks.FOLDER) / "x.lock").mkdir()
    with pytest.raises(ArtifactError) as refused, impatient.lock("x"):
        pytest.fail("it holds what is no lock")
    assert str(refused.value) == (
        f"cannot lock workspace {impatient.root}: Is a directory; choose another with --workspace"
    )


def test_numbers_of_writers_at_once(tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    storers = [start(root, n, code=STORER) for n in range(3)]
    assert [storer.wait(120) for storer in storers] == [0, 0, 0]
    numbers = [read_manifest(path).sequence for path in root.glob("onnx/*.manifest.json")]
    assert sorted(numbers) == list(range(1, 46))
    assert Workspace(root).check().problems == ()


def test_a_file_of_two_workspaces(tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    storers = [start(tmp_path / str(n), n, output, code=STORER) for n in range(2)]
    reader = Workspace(tmp_path / "0")
    while any(storer.poll() is None for storer in storers):
        if output.exists():
            reader.open(output)  # at every moment one that its manifest knows
    assert [storer.wait(120) for storer in storers] == [0, 0]
    assert reader.open(output).require_manifest().sha256
    assert "superseded" not in json.loads(output.with_name("model.onnx.manifest.json").read_text())
    assert not list(tmp_path.rglob(".t2t-tmp-*"))


def test_the_wait_is_told_and_ends(command: Commands) -> None:
    folder = command.copy()
    with running(HOLDER, folder / "artifacts") as holder:
        done = command(folder, "workspace", "prune", "--no-wait", "--json")
        who = f"another t2t-deploy (pid {holder.pid}, t2t-deploy build-trt) on workspace artifacts"
        message = (
            f"{who} is busy with what this command needs; try again when it is done, or leave "
            "--no-wait out to wait for it"
        )
        assert (done.status, done.err) == (1, f"error: {message}\n")
        assert done.json == {"error": {"kind": "BusyError", "message": message}}
        prune = ("workspace", "prune")
        with start(*prune, cwd=folder, stderr=subprocess.PIPE) as waiting:
            assert waiting.stderr is not None
            told = waiting.stderr.readline()
            assert told == f"note: waiting for {who}; --no-wait to fail instead\n"
            # what only reads waits for nobody
            for words in READING:
                assert command(folder, *words, "--no-wait").status == 0
            assert waiting.poll() is None
            finish(holder)
            assert waiting.wait(30) == 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_killed_holder_blocks_nobody(tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    impatient = Workspace(root, LockPolicy(wait=False))
    with running(HOLDER, root) as holder:
        with pytest.raises(BusyError, match=f"pid {holder.pid}, t2t-deploy build-trt"):
            impatient.prune()
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(30)
        assert impatient.prune() == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_running_work_is_not_pruned(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "artifacts")
    with running(WRITER, workspace.root) as writer:
        assert workspace.prune() == []
        assert workspace.check().leftovers == ()
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait(30)
        left = workspace.check().leftovers
        assert {path.parent.name for path in left} == {"artifacts", "onnx"}
        assert sorted(workspace.prune()) == sorted(left)
    assert not list(tmp_path.rglob(".t2t-tmp-*"))


@pytest.mark.slow
def test_the_second_calibration_of_the_same_takes_the_ranges_of_the_first(
    command: Commands,
) -> None:
    folder, words = command.copy(), ("calibrate", "--images", "pictures")
    assert command(folder, *words).status == 0
    (ranges,) = folder.glob("artifacts/calibration/*.ranges")
    content = ranges.read_bytes()
    ranges.unlink()
    with running(HOLDER, folder / "artifacts", ranges.stem) as holder:
        done = command(folder, *words, "--no-wait", status=1)
        assert re.search(rf"error: another t2t-deploy \(pid {holder.pid}, .* is busy", done.err)
        # other work goes on
        assert command(folder, *words, "--count", 2, "--no-wait").status == 0
        partial = ranges.with_suffix(".partial")
        partial.write_bytes(b"sums of the one that works")
        assert command(folder, "workspace", "prune").status == 0
        assert partial.exists()
        with start(*words, "--json", cwd=folder, **PIPES) as second:
            assert second.stderr is not None
            assert any("waiting for another" in line for line in second.stderr)
            ranges.write_bytes(content)
            finish(holder)
            out, _ = second.communicate(timeout=60)
        assert json.loads(out)["ranges"]["reused"] is True
    assert command(folder, "workspace", "prune").status == 0
    assert not partial.exists()


@pytest.mark.slow
def test_two_commands_both_end_well(command: Commands) -> None:
    folder = command.copy()
    both = (
        ("export", "--config", "tiny.toml", "--batch", "5"),
        ("export", "--config", "tiny.toml", "--batch", "6"),
        # the same one twice
        ("export", "--config", "tiny.toml", "--batch", "7", "-o", "same.onnx"),
        ("export", "--config", "tiny.toml", "--batch", "8", "-o", "same.onnx"),
    )
    processes = [start(*words, cwd=folder) for words in both]
    assert [process.wait(300) for process in processes] == [0] * len(both)
    workspace = Workspace(folder / "artifacts")
    numbers = [artifact.require_manifest().sequence for artifact in workspace.artifacts()]
    assert numbers == [1, 2, 3] or len(set(numbers)) == len(numbers) == 3
    assert workspace.open(folder / "same.onnx").require_manifest().batch in (7, 8)
    assert workspace.check().problems == ()
