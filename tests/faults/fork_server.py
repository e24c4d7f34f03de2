"""Runs command lines in forks of one warm process, and sends them a signal at an exact moment.

Started as a program: reads a JSON object a line, answers with one.

    words, cwd     the command line, and the folder it runs in, whose changes are counted
    environment    what to change in the environment
    at             send a signal before the change of this number, from 1
    after_s        send it this long after the start
    number         of the signal, SIGKILL where none is given
    filler         instead of the signal: fill the disk by this file
    flock          locking a file fails with this error number
    file_bytes     no file may become larger (RLIMIT_FSIZE)
    clock_s        what the clock says, seconds since 1970
    shell          instead of all that: a shell command, where this process sees its mounts

Answer: status as `subprocess` has it, changes (how many there were), seconds, out, err, pid.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import importlib
import json
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path
from typing import Any

WARM = (
    "filelock",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnxsim",
    "rich.console",
    "rich.table",
    "safetensors.numpy",
    "t2t_deploy.export",
    "t2t_deploy.model",
    "t2t_deploy.commands",
    "t2t_deploy.serving.triton",
    "torch",
    "torch.onnx",
    "skimage.data",
    "sklearn.datasets",
)
_CHANGES = frozenset(
    f"os.{name}"
    for name in ("rename", "remove", "mkdir", "rmdir", "truncate", "chmod", "link", "symlink")
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def number_of(order: dict[str, Any]) -> int:
    return int(order.get("number", signal.SIGKILL))


def fill(path: str) -> None:
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))


def refuse_locks(number: int) -> None:
    def flock(handle: Any, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    fcntl.flock = flock


def install(
    root: str, at: int | None, number: int, count: mmap.mmap, filler: str | None = None
) -> None:
    """Count the changes below ``root``, and send ourselves the signal before one of them."""
    owner = os.getpid()

    def inside(path: Any) -> bool:
        if isinstance(path, int):
            return False
        with contextlib.suppress(TypeError, ValueError):
            return os.path.realpath(os.fsdecode(path)).startswith(root)
        return False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            changes = bool((arguments[2] or 0) & _WRITES) and inside(arguments[0])
        elif event in _CHANGES:
            # what is removed with its folder is named within that
            changes = inside(arguments[0]) or (
                event in ("os.remove", "os.rmdir") and arguments[-1] != -1
            )
        else:
            return
        if changes and os.getpid() == owner:
            seen = struct.unpack("q", count[:8])[0] + 1
            count[:8] = struct.pack("q", seen)
            if seen == at and filler is not None:
                fill(filler)
            elif seen == at:
                os.kill(owner, number)

    sys.addaudithook(hook)


def child(order: dict[str, Any], count: mmap.mmap, out: int, err: int) -> None:
    os.dup2(out, 1)
    os.dup2(err, 2)
    # as a new process opens them: what they lead to now cannot be sought in
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.setsid()
    os.chdir(order["cwd"])
    for name, value in order.get("environment", {}).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if "TMPDIR" in order.get("environment", {}):
        tempfile.tempdir = None
    sys.stdin = open(os.devnull)  # noqa: SIM115  # until the fork ends
    from t2t_deploy.cli import main

    if order.get("file_bytes") is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"],) * 2)
    if order.get("clock_s") is not None:
        set_clock(order["clock_s"])
    if order.get("flock") is not None:
        refuse_locks(order["flock"])
    root = os.path.realpath(order["cwd"])
    install(root, order.get("at"), number_of(order), count, order.get("filler"))
    code: Any = 99
    try:
        main(order["words"])
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def set_clock(now_s: float) -> None:
    """Make every clock that artifacts are dated by say this."""
    from t2t_deploy.workspace import _workspace

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
            return cls.fromtimestamp(now_s, tz)

    time.time = lambda: now_s
    stands_in = types.SimpleNamespace(datetime=Clock, timezone=datetime.timezone)
    _workspace.datetime = stands_in  # type: ignore[assignment, attr-defined]


def shell(command: str) -> dict[str, Any]:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    found = {"status": done.returncode, "out": done.stdout, "err": done.stderr}
    return found | {"seconds": 0, "changes": 0, "pid": 0}


def run(order: dict[str, Any]) -> dict[str, Any]:
    if order.get("shell") is not None:
        return shell(order["shell"])
    # pipes: a file may be what has no room
    pipes = {name: os.pipe() for name in ("out", "err")}
    said = dict.fromkeys(pipes, b"")

    def read() -> None:
        for name, (end, _) in pipes.items():
            with contextlib.suppress(BlockingIOError):
                while chunk := os.read(end, 1 << 16):
                    said[name] += chunk

    with mmap.mmap(-1, 8) as count:
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(order, count, pipes["out"][1], pipes["err"][1])
        for end, other in pipes.values():
            os.close(other)
            os.set_blocking(end, False)
        after_s, ended = order.get("after_s"), 0
        while not ended:
            read()
            if after_s is not None and time.monotonic() - started >= after_s:
                os.kill(pid, number_of(order))
                after_s = None
            ended, status = os.waitpid(pid, os.WNOHANG)
            time.sleep(0.001)
        seconds = time.monotonic() - started
        read()
        for end, _ in pipes.values():
            os.close(end)
        return {
            "status": os.waitstatus_to_exitcode(status),
            "seconds": seconds,
            "changes": struct.unpack("q", count[:8])[0],
            "pid": pid,
            **{name: text.decode(errors="replace") for name, text in said.items()},
        }


def serve() -> None:
    for name in WARM:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    # what starts in the background of a shell, or under nohup, inherits that these are ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    serve()
