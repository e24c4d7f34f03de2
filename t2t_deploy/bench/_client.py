"""The parent's end of a worker process: start, ask, and make sure that it ends."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import psutil

from t2t_deploy.bench._inputs import FixedBatchError
from t2t_deploy.bench._results import BenchCase

WORKER_COMMAND = (sys.executable, "-m", "t2t_deploy.bench._worker")
LOAD_TIMEOUT_S = 600.0
"""Opening a session and its first call; torch.compile and just-in-time kernels take minutes."""
RUN_GRACE_S = 60.0
"""On top of what a run is expected to take, before the worker is taken to hang."""
CLOSE_TIMEOUT_S = 5.0
TAIL_BYTES = 4096
_REASON_CHARS = 500
_POLL_S = 0.2
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class WorkerError(Exception):
    """A worker that answered with an error, died or hangs; the text is one line.

    not_run: nothing is wrong, the case just cannot be measured.
    """

    def __init__(self, reason: str, *, not_run: bool = False) -> None:
        super().__init__(_one_line(reason)[:_REASON_CHARS])
        self.not_run = not_run


class Worker:
    """A worker process. Use as a context manager: on exit nothing of it is left running."""

    def __init__(self, threads: int | None) -> None:
        self._threads = threads
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._tail = b""

    def __enter__(self) -> Worker:
        self._process = subprocess.Popen(
            WORKER_COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=worker_environment(self._threads),
            # its own group: ended as a whole, and Ctrl-C reaches the parent alone
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._stdin: IO[bytes] = self._process.stdin
        self._readers = tuple(
            threading.Thread(target=target, args=(pipe,), daemon=True)
            for target, pipe in (
                (self._read_answers, self._process.stdout),
                (self._read_errors, self._process.stderr),
            )
        )
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._process.poll() is None:
                # a runtime that crashes while it is torn down has been measured all the same
                with contextlib.suppress(WorkerError):
                    self._ask({"command": "close"}, CLOSE_TIMEOUT_S)
        finally:
            self.kill()

    def load(self, case: BenchCase, seed: int) -> dict[str, Any]:
        """Open the session and call it once. Raises WorkerError."""
        request = case.request.to_dict()
        message = {
            "command": "load",
            "request": request,
            "batch": case.batch,
            "seed": seed,
            "wanted": case.wanted,
        }
        return self._ask(message, LOAD_TIMEOUT_S)

    def run(self, iterations: int, *, settle: int = 0, expected_ns: float) -> dict[str, Any]:
        """Time ``iterations`` calls after ``settle`` unrecorded ones.

        expected_ns: what one call took so far; far beyond it the worker is taken to hang.
        Raises WorkerError.
        """
        timeout_s = RUN_GRACE_S + 20 * (iterations + settle) * expected_ns / 1e9
        message = {"command": "run", "iterations": iterations, "settle": settle}
        return self._ask(message, timeout_s)

    def kill(self) -> None:
        """End the process and all it started; harmless when it has ended."""
        _kill_tree(self._process)
        self._process.wait()
        for reader in self._readers:
            reader.join(timeout=CLOSE_TIMEOUT_S)
        with contextlib.suppress(OSError):  # unsent bytes to a worker that is gone
            self._stdin.close()

    def _ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            self._stdin.write(json.dumps(message).encode() + b"\n")
            self._stdin.flush()
        except OSError as err:
            raise self._death() from err
        line = self._next_line(timeout_s)
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError as err:
            raise WorkerError(f"the worker answered {line[:80]!r}, which is not JSON") from err
        if not answer["ok"]:
            kind, text = answer["kind"], answer["message"]
            not_run = kind == FixedBatchError.__name__
            raise WorkerError(text if not_run else f"{kind}: {text}", not_run=not_run)
        return answer

    def _next_line(self, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            # Read before the wait: an answer sent just before death is still in the queue. The end
            # of the pipe is not enough to tell death, a forked child may hold the pipe open.
            ended = self._process.poll() is not None
            try:
                line = self._lines.get(timeout=_POLL_S)
            except queue.Empty:
                if ended:
                    raise self._death() from None
                continue
            if line is None:
                raise self._death()
            return line
        raise WorkerError(f"no answer from the worker within {timeout_s:.0f} s; it was ended")

    def _death(self) -> WorkerError:
        """Why the worker is gone; waits a moment for its status and last words."""
        try:
            status = self._process.wait(timeout=CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return WorkerError(f"the worker closed its pipe{self._last_words()}")
        self._readers[1].join(timeout=_POLL_S)
        if status >= 0:
            return WorkerError(f"the worker exited with status {status}{self._last_words()}")
        names = {member.value: member.name for member in signal.Signals}  # without real-time ones
        name = names.get(-status, f"signal {-status}")
        hint = " (often: out of memory)" if name == "SIGKILL" else ""
        return WorkerError(f"the worker died of {name}{hint}{self._last_words()}")

    def _last_words(self) -> str:
        text = _one_line(self._tail.decode(errors="replace"))
        return f"; stderr ends: {text[-300:]}" if text else ""

    def _read_answers(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self, pipe: IO[bytes]) -> None:
        with pipe:
            while chunk := os.read(pipe.fileno(), TAIL_BYTES):
                self._tail = (self._tail + chunk)[-TAIL_BYTES:]


def worker_environment(threads: int | None) -> dict[str, str]:
    """The worker's environment: this one's, with the thread count where libraries look for it."""
    environment = dict(os.environ)
    if threads is not None:
        environment |= dict.fromkeys(_THREAD_VARIABLES, str(threads))
    # The worker runs in the same folder, since paths may be relative to it, but a numpy.py lying
    # there must not be imported (heeded from Python 3.11 on).
    environment["PYTHONSAFEPATH"] = "1"
    root = str(Path(__file__).resolve().parents[2])
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        # a checkout: the worker must run the same code as its parent
        environment["PYTHONPATH"] = os.pathsep.join(
            part for part in (root, environment.get("PYTHONPATH")) if part
        )
    return environment


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    descendants = []
    if process.poll() is None:
        # compile pools may have left the group; once their parent is gone they cannot be found
        with contextlib.suppress(psutil.NoSuchProcess):
            descendants = psutil.Process(process.pid).children(recursive=True)
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    for descendant in descendants:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()


def _one_line(text: str) -> str:
    return " ".join(text.split())
