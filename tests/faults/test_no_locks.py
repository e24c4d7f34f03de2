"""File systems on which files cannot be locked: `fcntl.flock` fails as it does there."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import filelock
import pytest

from t2t_deploy._files import TEMPORARY, machine_id
from t2t_deploy.errors import ArtifactError, BusyError
from t2t_deploy.workspace import LockPolicy, Workspace, _locks

from ..manifests import store
from ..program import start
from .conftest import Commands
from .test_locks import HOLDER, STORER, WRITER, running

fcntl = pytest.importorskip("fcntl")
WITHOUT = ("ENOLCK", "EOPNOTSUPP", "ENOTSUP", "EINVAL", "ENOSYS", "EACCES", "EPERM")
BROKEN = ("EIO", "ESTALE")
EXPORT = ("export", "--config", "tiny.toml", "--batch", 3)
# the same for a program that is started: what stands before its code
REFUSING = """
import errno, fcntl, os
def flock(handle, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = flock
"""


def refuse(monkeypatch: pytest.MonkeyPatch, name: str = "ENOLCK") -> None:
    number = getattr(errno, name)

    def flock(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def workspace(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace without locks, in which nobody is waited for."""
    monkeypatch.setattr(_locks, "_GRACE_S", 0.2)
    refuse(monkeypatch)
    return Workspace(tmp_path / "artifacts", LockPolicy(wait=False, say=said.append))


def marked(workspace: Workspace, pid: int, host: str, note: dict[str, Any] | None = None) -> Path:
    """A marker as filelock makes it, and the note beside it."""
    folder = workspace.folder(_locks.FOLDER)
    marker = folder / "workspace.marker"
    marker.write_text(f"{pid}\n{host}\n")
    if note is not None:
        (folder / "workspace.json").write_text(json.dumps(note))
    return marker


def refusal(workspace: Workspace) -> str:
    with pytest.raises(BusyError) as refused, workspace.lock():
        pytest.fail("two have one lock")
    return str(refused.value)


def signature(pid: int, host: str, machine: str) -> dict[str, Any]:
    return {"pid": pid, "host": host, "machine": machine, "command": "t2t-deploy export"}


@pytest.fixture
def dead() -> int:
    """The number of a process that is gone."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


@pytest.mark.parametrize("name", WITHOUT)
def test_a_workspace_without_locks_is_written_and_it_is_said_once(
    workspace: Workspace, said: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    refuse(monkeypatch, name)
    workspace.folder(_locks.FOLDER).joinpath("workspace.lock").touch()  # of the time with locks
    workspace.check_writable("weights", "onnx")
    for content in (b"a", b"b"):
        store(workspace, content, weights={})
    (note,) = said
    assert f"cannot be locked ({os.strerror(getattr(errno, name))}): marker files" in note
    assert [a.require_manifest().sequence for a in workspace.artifacts()] == [1, 2]
    assert workspace.check().problems == () and not workspace.check().leftovers
    assert not list((workspace.root / _locks.FOLDER).glob("*.marker"))


@pytest.mark.parametrize("name", BROKEN)
def test_a_disk_that_fails_is_refused_and_nothing_is_left(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    refuse(monkeypatch, name)
    with pytest.raises(ArtifactError, match=os.strerror(getattr(errno, name))):
        workspace.check_writable("onnx")
    assert not workspace.root.exists()


def test_commands_without_locks(command: Commands) -> None:
    folder = command.copy()
    done = command(folder, *EXPORT, "-o", "new.onnx", flock=errno.ENOLCK, status=0)
    assert done.err.count("where files cannot be locked (No locks available)") == 1
    assert command(folder, "verify", "new.onnx", flock=errno.ENOSYS).status == 0
    done = command(folder, *EXPORT, "-o", "never.onnx", flock=errno.EIO, status=1)
    assert "error: cannot lock workspace artifacts: Input/output error" in done.err
    assert "exporting" not in done.err and not (folder / "never.onnx").exists()


def test_two_processes_have_one_marker(workspace: Workspace) -> None:
    with running(REFUSING + HOLDER, workspace.root) as holder:
        told = refusal(workspace)
        marker = workspace.root / _locks.FOLDER / "workspace.marker"
        assert told.startswith(f"another t2t-deploy (pid {holder.pid}, t2t-deploy build-trt) on")
        assert told.endswith(f"; should that one be gone, remove {marker}")
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(30)
    with workspace.lock():  # filelock sees that it is gone, where the file system swaps names
        assert marker.exists()
    assert not marker.exists()


def test_a_marker_of_a_killed_command_that_filelock_leaves(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, dead: int
) -> None:
    """As on NFS, where two names cannot be swapped."""
    monkeypatch.setattr(filelock.SoftFileLock, "_try_break_stale_lock", lambda lock: None)
    host = socket.gethostname()
    marker = marked(workspace, dead, host, signature(dead, host, machine_id()))
    whose = f"is of a command that was killed (pid {dead}, t2t-deploy export): remove that file"
    assert f"{marker} {whose}" in refusal(workspace)
    marker.unlink()
    store(workspace)


@pytest.mark.parametrize(
    ("note", "whose"),
    [
        (signature(7, "node-7", "0"), "(pid 7 on node-7, t2t-deploy export)"),
        (signature(8, "node-7", "0"), "(pid 7 on node-7)"),  # of an earlier holder
        (signature(7, "node-8", "0"), "(pid 7 on node-7)"),
        (None, "(pid 7 on node-7)"),
    ],
)
def test_a_holder_on_another_machine_is_named_by_the_marker(
    workspace: Workspace, note: dict[str, Any] | None, whose: str
) -> None:
    marked(workspace, 7, "node-7", note)
    assert f"another t2t-deploy {whose} on workspace" in refusal(workspace)


def test_a_marker_that_says_nothing(workspace: Workspace) -> None:
    marked(workspace, 7, "node-7").write_text("")
    assert "(its pid is unknown)" in refusal(workspace)


@pytest.mark.parametrize(
    ("host", "machine", "whose"),
    [
        ("node-7", "0", "on node-7, t2t-deploy export)"),
        (socket.gethostname(), machine_id(), "(its pid is unknown)"),  # it is gone
    ],
)
def test_a_real_lock_names_its_holder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dead: int,
    host: str,
    machine: str,
    whose: str,
) -> None:
    monkeypatch.setattr(_locks, "_GRACE_S", 0)
    workspace = Workspace(tmp_path / "artifacts", LockPolicy(wait=False))
    path = workspace.folder(_locks.FOLDER) / "workspace.lock"
    with filelock.FileLock(path):
        path.write_text(json.dumps(signature(dead, host, machine)))
        assert whose in refusal(workspace)


def test_calibrations_under_way_are_known(workspace: Workspace) -> None:
    assert not _locks.is_locked(workspace.root, "x")
    with workspace.lock("x"):
        assert _locks.is_locked(workspace.root, "x")
    assert not _locks.is_locked(workspace.root, "x")


def test_temporary_files_of_the_living_the_dead_and_of_strangers(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = [workspace.root / f"{TEMPORARY}{whose}" for whose in ("0-7-a.onnx", "0123")]
    with running(REFUSING + WRITER, workspace.root) as writer:
        for path in strange:
            path.touch()
        assert workspace.prune() == []
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait(30)
        found = workspace.check()
        assert {path.parent.name for path in found.leftovers} == {"artifacts", "onnx"}
        assert sorted(found.unknown) == sorted(strange)
        assert sorted(workspace.prune()) == sorted(found.leftovers)
    assert sorted(workspace.of_unknown_owner()) == sorted(strange)
    monkeypatch.undo()
    assert sorted(workspace.prune()) == sorted(strange)  # with locks, everybody knows


def test_files_left_for_strangers_are_named(command: Commands) -> None:
    folder = command.copy()
    left = folder / "artifacts" / f"{TEMPORARY}0-7-a.onnx"
    left.touch()
    shown = str(left.relative_to(folder))
    for words, key in ((("workspace", "prune"), "removed"), (("workspace", "check"), "leftovers")):
        done = command(folder, *words, "--json", flock=errno.EINVAL, status=0)
        assert (done.json[key], done.json["unknown"]) == ([], [shown])
        assert shown in command(folder, *words, flock=errno.EINVAL).out
    assert left.exists()


def test_numbers_of_writers_at_once_without_locks(tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    storers = [start(root, n, code=REFUSING + STORER) for n in range(3)]
    assert [storer.wait(120) for storer in storers] == [0, 0, 0]
    numbers = [a.require_manifest().sequence for a in Workspace(root).artifacts()]
    assert numbers == list(range(1, 46))
