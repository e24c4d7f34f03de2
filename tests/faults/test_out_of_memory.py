"""Less memory than the work takes: one line and exit 1, and a workspace that is as it was."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest

from t2t_deploy._optional import is_installed
from t2t_deploy.cli import _memory
from t2t_deploy.cli._memory import memory_short
from t2t_deploy.errors import ArtifactError, MemoryShortError
from t2t_deploy.workspace import Workspace

from ..noise import write_noise
from ..program import Done, finish
from ..small import TINY

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux keeps them")
# The command line under a limit that it sets itself before anything is loaded.
LIMITED = """
import resource, sys
kind, limit = getattr(resource, sys.argv.pop(1)), int(sys.argv.pop(1)) << 20
resource.setrlimit(kind, (limit, limit))
from t2t_deploy.cli import main
main()
"""
EXPORT = ("export", "--config", "tiny.toml")


def run(folder: Path, code: str, *words: object) -> Done:
    return finish(*words, "--json", code=code, cwd=folder, timeout_s=500)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def check(folder: Path, done: Done, engines: Collection[Path] = ()) -> str:
    """The outcome is a clean success, or one line with exit 1; either way nothing is half there.

    engines: those there were before.
    """
    workspace = Workspace(folder / "artifacts")
    assert workspace.check().problems == ()
    assert "Traceback" not in done.err
    if done.status in (0, 3):  # 3: int8 of so small a model is beyond the tolerance
        return ""
    assert done.status == 1, done.err
    error = done.json["error"]
    assert error["kind"] in ("MemoryShortError", "CrashError", "EngineError")
    assert "memory" in error["message"] and "\n" not in error["message"]
    assert done.err.splitlines()[-1] == f"error: {error['message']}"
    assert set(folder.rglob("*.engine")) == set(engines)
    return str(error["message"])


@linux
@pytest.mark.parametrize("limit_mib", [60, 200])
def test_too_little_memory_to_begin_with(folder: Path, limit_mib: int) -> None:
    done = run(folder, LIMITED, "RLIMIT_AS", str(limit_mib), *EXPORT)
    said = check(folder, done)
    assert done.json["error"]["kind"] == MemoryShortError.__name__
    assert said.startswith("out of memory in 'export': ")
    assert f"ulimit -v allows {limit_mib} MiB" in said


@linux
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
@pytest.mark.parametrize("stage", ["export", "calibrate", "quantize", "build-trt"])
def test_too_little_memory_anywhere(folder: Path, stage: str, kind: str) -> None:
    """From a limit that is enough down to none, in steps: each ends in one of two ways."""
    if stage == "build-trt" and not is_installed("tensorrt_rtx"):
        pytest.skip("tensorrt_rtx is not installed")
    unlimited = ("RLIMIT_CORE", "0")
    words: tuple[str, ...] = EXPORT
    if stage != "export":
        assert run(folder, LIMITED, *unlimited, *EXPORT).status == 0
        files = (folder / "pictures" / f"{index}.png" for index in range(4))
        write_noise(*files, size=(64, 64))
        images = ("--images", "pictures")
        words = (stage, *(("--fp32", "--sm", "86") if stage == "build-trt" else images))
    said = {}
    for limit in (2400, 1600, 1200, 1000, 900, 800, 700, 600, 500, 400, 300, 150, 60):
        engines = list(folder.rglob("*.engine"))
        said[limit] = check(folder, run(folder, LIMITED, kind, str(limit), *words), engines)
        print(stage, kind, limit, said[limit] or "done")
    assert said[2400] == ""
    assert said[60] != ""
    # the next command works
    assert run(folder, LIMITED, *unlimited, *words).status in (0, 3)


# Compiled code that gives up in the middle of an export.
ABORTS = """
import os
import pathlib
from t2t_deploy.cli import main

pathlib.Path.replace = lambda *paths: os.kill(os.getpid(), {number})
main()
"""


@linux
@pytest.mark.parametrize(("name", "number"), [("SIGABRT", 6), ("SIGKILL", 9)])
def test_a_crash_of_compiled_code_is_one_line(folder: Path, name: str, number: int) -> None:
    done = run(folder, ABORTS.format(number=number), *EXPORT)
    said = check(folder, done)
    assert done.json["error"]["kind"] == "CrashError"
    assert name in said and "'export'" in said
    # what was being written is seen by nobody, and goes with the next prune
    workspace = Workspace(folder / "artifacts")
    assert workspace.artifacts() == []
    left = list(workspace.root.rglob(".t2t-tmp-*"))
    assert len(left) == 1 and workspace.prune() == left


# What libraries do where they have no memory: the loader with 127, OpenBLAS with 1.
LEAVES = """
import os
import pathlib
from t2t_deploy.cli import main

pathlib.Path.replace = lambda *paths: os._exit({status})
main()
"""


@linux
@pytest.mark.parametrize("status", [127, 1, 0])
def test_what_compiled_code_ends_is_one_line(folder: Path, status: int) -> None:
    done = run(folder, LEAVES.format(status=status), *EXPORT)
    said = check(folder, done)
    assert done.json["error"]["kind"] == "CrashError"
    assert said.startswith(
        f"'export' crashed in native code (status {status}), usually out of memory: free"
    )


# No memory left where the error would be told.
SPEECHLESS = """
from t2t_deploy.cli import _main, main

def nothing_left(*arguments):
    raise MemoryError

_main.memory_short = nothing_left
_main.cli.main = nothing_left
main()
"""


@linux
def test_an_error_that_cannot_be_told_is_told_by_the_supervisor(folder: Path) -> None:
    done = run(folder, SPEECHLESS, *EXPORT)
    assert check(folder, done) == (
        "out of memory in 'export', with none left to say where: free some or raise the limit "
        "(ulimit -v)"
    )


def test_what_onednn_says_means_memory_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    err = RuntimeError("could not create a primitive")
    assert memory_short(err, "export") is None
    monkeypatch.setattr(_memory, "_ROOM", 1 << 60)
    assert memory_short(err, "export") is not None


# -- which errors mean memory --------------------------------------------------------------------


def python_allocates() -> None:
    np.empty(1 << 60, np.uint8)


def torch_allocates() -> None:
    torch = pytest.importorskip("torch")
    torch.empty(1 << 60, dtype=torch.uint8)


def wrapped() -> None:
    try:
        python_allocates()
    except MemoryError as err:
        raise ArtifactError("ONNX Runtime refuses it; export the model again") from err


def beside_it() -> None:
    try:
        python_allocates()
    except MemoryError:
        raise ValueError("no array")  # noqa: B904  # as libraries do


def the_system_refuses() -> None:
    raise OSError(errno.ENOMEM, "Out of memory")  # as musl says it


EXPECTED = (
    ": free some or raise the limit; less is needed with a smaller --batch or --max-batch, and "
    "with fewer pictures (--count)"
)


@pytest.mark.parametrize(
    "work", [python_allocates, torch_allocates, wrapped, beside_it, the_system_refuses]
)
def test_what_means_memory(work: Callable[[], None]) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # each library has its own
        work()
    short = memory_short(caught.value, "export")
    assert isinstance(short, MemoryShortError)
    used = r"out of memory in 'export': \d+ MiB were in use at most(, ulimit -[vd] allows \d+ MiB)*"
    assert re.fullmatch(used + re.escape(EXPECTED), str(short))


@pytest.mark.parametrize(
    "said",
    [
        "std::bad_alloc",
        "bad allocation",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
        "libx.so: cannot map zero-fill pages: Cannot allocate memory",
        "libgomp.so.1: cannot allocate memory in static TLS block",
        "[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 8",
        "libtorch_cpu.so: failed to map segment from shared object",
        "can't start new thread",
    ],
)
def test_what_compiled_code_says_of_memory(said: str) -> None:
    assert isinstance(memory_short(RuntimeError(said), "export"), MemoryShortError)


def test_a_library_that_another_one_needs_and_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2t_deploy.cli._memory._ROOM", 1 << 62)
    with pytest.raises(ImportError) as caught:
        a_library_that_is_absent()
    assert isinstance(memory_short(caught.value, "export"), MemoryShortError)


def test_where_no_limits_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert str(memory_short(MemoryError(), "export")) == f"out of memory in 'export'{EXPECTED}"


def a_bug() -> None:
    raise RuntimeError("shapes (2, 3) and (4, 5) do not fit")


def a_file_of_that_name() -> None:
    raise ArtifactError("there is no file std::bad_alloc; export the model first")


def after_one_that_was_dealt_with() -> None:
    try:
        python_allocates()
    except MemoryError:
        raise ArtifactError("another matter") from None


def a_bug_after_one_that_was_dealt_with() -> None:
    try:
        python_allocates()
    except MemoryError:
        raise RuntimeError("another matter") from None


def one_of_ours_that_names_no_cause() -> None:
    try:
        python_allocates()
    except MemoryError:
        raise ArtifactError("another matter")  # noqa: B904  # on purpose


def a_library_that_is_absent() -> None:
    raise ImportError("libx.so.1: cannot open shared object file: No such file or directory")


@pytest.mark.parametrize(
    "work",
    [
        *(a_bug, a_file_of_that_name, after_one_that_was_dealt_with, a_library_that_is_absent),
        *(a_bug_after_one_that_was_dealt_with, one_of_ours_that_names_no_cause),
    ],
)
def test_what_does_not(work: Callable[[], None]) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        work()
    assert memory_short(caught.value, "export") is None
