"""Forks of a program. Each has a time limit: one that hangs is killed and is a failure."""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from t2t_deploy.errors import DeployError

LIMIT_S = 60.0
FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None


def answer(work: Callable[[], Any]) -> Any:
    """What the work gives, or the kind and text of its error."""
    try:
        return work()
    except DeployError as err:
        return f"{err.kind}: {err}"


def in_fork(work: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    """The answer of a fork that then ends as programs do, by the interpreter's own end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os.write(writing, json.dumps(answer(work)).encode())
        sys.exit(0)
    os.close(writing)
    ended = False
    try:
        # end of file: the fork has ended, or never will
        ended = wait_for_end(reading, limit_s)
    finally:
        if not ended:
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.set_blocking(reading, False)  # what a killed fork started may hold the other end
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read() or b""
    if not ended:
        return f"hangs after {text.decode()!r}"
    return json.loads(text) if status == 0 else f"ended with {status} after {text.decode()!r}"


def wait_for_end(reading: int, limit_s: float) -> bool:
    """Whether the other end of a pipe is closed in time; what was written stays in it."""
    poll = select.poll()
    poll.register(reading, select.POLLHUP)  # which is told although there is something to read
    for event in poll.poll(limit_s * 1000):
        return bool(event[1] & select.POLLHUP)
    return False


def in_pool(work: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    """The answer of a worker of a forked `multiprocessing` pool."""
    assert FORK is not None
    with FORK.Pool(1) as pool:  # whose end kills the worker
        try:
            return pool.apply_async(answer, (work,)).get(limit_s)
        except multiprocessing.TimeoutError:
            return "hangs"


def in_executor(work: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    """The answer of a worker of a forked `concurrent.futures` pool."""
    executor = ProcessPoolExecutor(1, mp_context=FORK)
    try:
        return executor.submit(answer, work).result(limit_s)
    except TimeoutError:
        for worker in executor._processes.values():
            worker.kill()
        return "hangs"
    finally:
        executor.shutdown()
