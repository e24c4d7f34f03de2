"""Runs command lines in forks of one warm process, and sends them a signal at an exact moment.

Started as a program: reads a JSON object a line, answers with one.

    words, cwd     the command line, and where it runs
    environment    what to change in the environment
    root           the folder whose changes are counted
    at             send the signal before the change of this number, from 1; null sends none
    after_s        send it this long after the start; null does not
    signal         its number
    stop           a file: where it appears, the fork has been stopped at `at` by SIGSTOP

Answer: status as `subprocess` has it, changes (how many there were), seconds, out, err, pid.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import mmap
import os
import signal
import struct
import sys
import tempfile
import time
import traceback
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
    "t2t_deploy.pipeline",
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


def install(root: str, at: int | None, number: int, count: mmap.mmap) -> None:
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
            if seen == at:
                os.kill(owner, number)

    sys.addaudithook(hook)


def child(order: dict[str, Any], count: mmap.mmap, out: int, err: int) -> None:
    os.dup2(out, 1)
    os.dup2(err, 2)
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

    install(os.path.realpath(order["root"]), order.get("at"), order["signal"], count)
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


def run(order: dict[str, Any]) -> dict[str, Any]:
    with (
        mmap.mmap(-1, 8) as count,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(order, count, out.fileno(), err.fileno())
        if order.get("after_s") is not None:
            while time.monotonic() - started < order["after_s"]:
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    break
                time.sleep(0.002)
            os.kill(pid, order["signal"])
        _, status = os.waitpid(pid, 0)
        found = {
            "status": os.waitstatus_to_exitcode(status),
            "seconds": time.monotonic() - started,
            "changes": struct.unpack("q", count[:8])[0],
            "pid": pid,
        }
        for name, file in (("out", out), ("err", err)):
            file.seek(0)
            found[name] = file.read().decode(errors="replace")
        return found


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
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    serve()
