"""Less memory than the work takes: one line and exit 1, and a workspace that is as it was."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import pytest

from t2t_deploy._limits import Limits
from t2t_deploy._optional import is_installed
from t2t_deploy.cli import _memory
from t2t_deploy.cli._memory import memory_short
from t2t_deploy.errors import ArtifactError, MemoryShortError
from t2t_deploy.workspace import Workspace

from ..cgroups import control_group
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


def run(folder: Path, code: str, *words: object, within: Sequence[str] = ()) -> Done:
    return finish(*words, "--json", code=code, within=within, cwd=folder, timeout_s=500)


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


# Compiled code that ends the program in the middle of an export.
ENDS = """
import os
import pathlib
from t2t_deploy.cli import main

pathlib.Path.replace = lambda *paths: os.{call}
main()
"""


@linux
@pytest.mark.parametrize(
    ("call", "how"),
    [
        ("kill(os.getpid(), 6)", "'export' crashed in native code (SIGABRT), usually out of"),
        ("kill(os.getpid(), 9)", "'export' was killed (SIGKILL), which the system does where"),
        # what libraries do where they have no memory: the loader with 127, OpenBLAS with 1
        ("_exit(127)", "'export' crashed in native code (status 127), usually out of memory: free"),
        ("_exit(1)", "'export' crashed in native code (status 1), usually out of memory: free"),
        ("_exit(0)", "'export' crashed in native code (status 0), usually out of memory: free"),
    ],
)
def test_a_crash_of_compiled_code_is_one_line(folder: Path, call: str, how: str) -> None:
    done = run(folder, ENDS.format(call=call), *EXPORT)
    assert check(folder, done).startswith(how)
    assert done.json["error"]["kind"] == "CrashError"
    # what was being written is seen by nobody, and goes with the next prune
    workspace = Workspace(folder / "artifacts")
    assert workspace.artifacts() == []
    left = list(workspace.root.rglob(".t2t-tmp-*"))
    assert len(left) == 1 and workspace.prune() == left


# More than the group of the test allows.
GREEDY = """
import pathlib
from t2t_deploy.cli import main

pathlib.Path.replace = lambda *paths: len(bytearray(b"x") * (2 << 30))
main()
"""


@linux
def test_command_that_a_real_groups_limit_kills_names_the_limit(folder: Path) -> None:
    with control_group(memory_bytes=1 << 30) as within:
        done = run(folder, GREEDY, *EXPORT, within=within)
    assert check(folder, done) == (
        "'export' was killed (SIGKILL), which the system does where memory runs out (the control "
        "group allows 1,024 MiB): free memory, or work on less at once (--batch, --count)"
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


# -- which errors mean memory --------------------------------------------------------------------


def error(
    err: Exception, *, cause: Exception | None = None, after: Exception | None = None
) -> Exception:
    """An error as it is caught: raised from another one, or beside one that was handled."""
    err.__context__ = after
    if cause is not None:
        err.__cause__ = cause
    return err


def in_spite_of_it(err: Exception) -> Exception:
    """Raised `from None`: what it came after was dealt with."""
    err.__context__, err.__suppress_context__ = MemoryError(), True
    return err


ABSENT = "cannot open shared object file: No such file or directory"
EXPECTED = (
    ": free some or raise the limit; less is needed with a smaller --batch or --max-batch, and "
    "with fewer pictures (--count)"
)


def assert_memory(err: Exception) -> None:
    short = memory_short(err, "export")
    assert isinstance(short, MemoryShortError)
    used = r"out of memory in 'export': \d+ MiB were in use at most(, ulimit -[vd] allows \d+ MiB)*"
    assert re.fullmatch(used + re.escape(EXPECTED), str(short))


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: np.empty(1 << 60, np.uint8),
        lambda: pytest.importorskip("torch").empty(1 << 60),
    ],
    ids=["numpy", "torch"],
)
def test_an_allocation_that_fails(allocate: Callable[[], object]) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    assert_memory(caught.value)


@pytest.mark.parametrize(
    "err",
    [
        error(ArtifactError("ONNX Runtime refuses it"), cause=MemoryError()),
        error(ValueError("no array"), after=MemoryError()),
        OSError(errno.ENOMEM, "Out of memory"),  # as musl says it
        *map(
            RuntimeError,
            (
                "std::bad_alloc",
                "bad allocation",
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
                "libx.so: cannot map zero-fill pages: Cannot allocate memory",
                "libgomp.so.1: cannot allocate memory in static TLS block",
                "[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 8",
                "libtorch_cpu.so: failed to map segment from shared object",
                "can't start new thread",
            ),
        ),
    ],
    ids=str,
)
def test_what_means_memory(err: Exception) -> None:
    assert_memory(err)


@pytest.mark.parametrize(
    "err",
    [RuntimeError("could not create a primitive"), ImportError(f"libx.so.1: {ABSENT}")],
    ids=["oneDNN", "a library"],
)
def test_what_means_memory_where_there_is_none(
    err: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert memory_short(err, "export") is None
    monkeypatch.setattr(_memory, "_ROOM", 1 << 62)
    assert_memory(err)


def test_what_may_be_taken_is_said_of_each_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "read_limits", lambda: Limits(2, None, 512 << 20))
    said = str(memory_short(MemoryError(), "export"))
    assert "MiB were in use at most" in said and ", the control group allows 512 MiB" in said


def test_where_no_limits_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert str(memory_short(MemoryError(), "export")) == f"out of memory in 'export'{EXPECTED}"


@pytest.mark.parametrize(
    "err",
    [
        RuntimeError("shapes (2, 3) and (4, 5) do not fit"),
        ArtifactError("there is no file std::bad_alloc; export the model first"),
        in_spite_of_it(ArtifactError("another matter")),
        in_spite_of_it(RuntimeError("another matter")),
        # one of ours that names no cause
        error(ArtifactError("another matter"), after=MemoryError()),
    ],
)
def test_what_does_not(err: Exception) -> None:
    assert memory_short(err, "export") is None
