"""A process of our own that does what may crash, eat memory or hang: both ends of the pipe.

Messages are JSON objects, one a line, with records as plain values; one with ``payload_bytes`` is
followed by that many bytes.
The child runs in a session of its own: it is ended as a whole, and Ctrl-C reaches the parent alone.
When the parent is gone, however it went, the child ends too.
"""

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from t2t_deploy._codec import to_plain

CLOSE_TIMEOUT_S = 5.0
TAIL_BYTES = 4096
_POLL_S = 0.2
_LOOK_EACH = 5
_PAYLOAD = "payload_bytes"
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class ChildError(Exception):
    """A child that is gone, does not answer, or answers nonsense; the text is one line.

    gone: the same without what the process said last.
    """

    def __init__(self, gone: str, last_words: str = "") -> None:
        super().__init__(gone + last_words)
        self.gone = gone


@dataclass(frozen=True, slots=True)
class Message:
    """What one end tells the other."""

    values: dict[str, Any]
    payload: bytes = b""


# -- the parent's end ------------------------------------------------------------------------------


class Child:
    """A child process. Use as a context manager: on exit nothing of it is left running.

    name: what it is called in messages.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], name: str) -> None:
        self._command, self._environment, self._name = command, environment, name
        self._messages: queue.SimpleQueue[Message | ChildError | None] = queue.SimpleQueue()
        self._tail = b""

    def __enter__(self) -> Child:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._stdin: IO[bytes] = self._process.stdin
        self._readers = tuple(
            threading.Thread(target=target, args=(pipe,), daemon=True)
            for target, pipe in (
                (self._read_messages, self._process.stdout),
                (self._read_errors, self._process.stderr),
            )
        )
        try:
            for reader in self._readers:
                reader.start()
        except BaseException:
            _kill_tree(self._process)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.poll() is None

    def tell(self, values: Mapping[str, Any]) -> None:
        """Send a message. Raises ChildError where nobody is there to read it."""
        try:
            self._stdin.write(json.dumps(to_plain(values)).encode() + b"\n")
            self._stdin.flush()
        except OSError as err:
            raise self._death() from err

    def next_message(
        self, timeout_s: float | None = None, *, stalled_s: float | None = None
    ) -> Message:
        """Wait for the next message; None waits as long as the process lives. Raises ChildError.

        stalled_s: how long the process, with all it started, may use no processor time at all.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        stall = None if stalled_s is None else _Stall(self._process.pid, stalled_s)
        while deadline is None or time.monotonic() < deadline:
            # Read before the wait: an answer sent just before death is still in the queue. The end
            # of the pipe is not enough to tell death, a forked child may hold the pipe open.
            ended = not self.is_running
            try:
                # a bounded wait, because an unbounded one ignores Ctrl-C on Windows
                message = self._messages.get(timeout=_POLL_S)
            except queue.Empty:
                if ended:
                    raise self._death() from None
                if stall is not None and stall.lasts():
                    gone = f"the {self._name} used no processor time for {stalled_s:g} s"
                    raise ChildError(gone, self._last_words()) from None
                continue
            if message is None:
                raise self._death()
            if isinstance(message, ChildError):
                raise message
            return message
        raise ChildError(f"no answer from the {self._name} within {timeout_s:.0f} s; it was ended")

    def kill(self) -> None:
        """End the process and all it started; harmless when it has ended."""
        _kill_tree(self._process)
        self._process.wait()
        for reader in self._readers:
            reader.join(timeout=CLOSE_TIMEOUT_S)
        with contextlib.suppress(OSError):  # unsent bytes to a process that is gone
            self._stdin.close()

    def _death(self) -> ChildError:
        """Why the process is gone; waits a moment for its status and last words."""
        try:
            status = self._process.wait(timeout=CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return ChildError(f"the {self._name} closed its pipe", self._last_words())
        self._readers[1].join(timeout=_POLL_S)
        return ChildError(f"the {self._name} {ended_how(status)}", self._last_words())

    def _last_words(self) -> str:
        text = " ".join(self._tail.decode(errors="replace").split())
        return f"; stderr ends: {text[-300:]}" if text else ""

    def _read_messages(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                try:
                    values = json.loads(line)
                    payload = pipe.read(values.get(_PAYLOAD, 0))
                except (ValueError, AttributeError):
                    reason = f"the {self._name} answered {line[:80]!r}, which is not JSON"
                    self._messages.put(ChildError(reason))
                    continue
                if len(payload) == values.get(_PAYLOAD, 0):
                    self._messages.put(Message(values, payload))
        self._messages.put(None)

    def _read_errors(self, pipe: IO[bytes]) -> None:
        with pipe:
            while chunk := os.read(pipe.fileno(), TAIL_BYTES):
                self._tail = (self._tail + chunk)[-TAIL_BYTES:]


class _Stall:
    """Whether a process and its descendants have stood still for long.

    Waits are counted, not a clock read: while this machine is suspended they stand still as well.
    """

    def __init__(self, pid: int, most_s: float) -> None:
        self._pid, self._most = pid, round(most_s / _POLL_S)
        self._waits, self._used_s = 0, -1.0

    def lasts(self) -> bool:
        """To be asked after each wait of `_POLL_S`."""
        self._waits += 1
        # once a second, and at the end: looking costs a walk over all processes
        if self._waits % _LOOK_EACH == 0 or self._waits >= self._most:
            used_s = _processor_s(self._pid)
            if used_s != self._used_s:
                self._waits, self._used_s = 0, used_s
        return self._waits >= self._most


def _processor_s(pid: int) -> float:
    """Processor time of a process and all it started that still runs, as fine as the system counts.

    Another number after one of them ended, which is as much a sign of life.
    """
    import psutil

    used_s = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                used_s += times.user + times.system
    return used_s


def ended_how(status: int) -> str:
    """How a process ended, from its return code: ``died of SIGFPE``, ``exited with status 3``."""
    if status >= 0:
        return f"exited with status {status}"
    names = {member.value: member.name for member in signal.Signals}  # without real-time ones
    name = names.get(-status, f"signal {-status}")
    return f"died of {name}{' (often: out of memory)' if name == 'SIGKILL' else ''}"


def module_command(module: str) -> tuple[str, ...]:
    """The command that runs a module of ours as a child."""
    return (sys.executable, "-m", module)


def child_environment(threads: int | None = None) -> dict[str, str]:
    """A child's environment: this one's, with the thread count where libraries look for it."""
    environment = dict(os.environ)
    if threads is not None:
        environment |= dict.fromkeys(_THREAD_VARIABLES, str(threads))
    # The child runs in the same folder, since paths may be relative to it, but a numpy.py lying
    # there must not be imported (heeded from Python 3.11 on).
    environment["PYTHONSAFEPATH"] = "1"
    root = str(Path(__file__).resolve().parents[1])
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        # a checkout: the child must run the same code as its parent
        environment["PYTHONPATH"] = os.pathsep.join(
            part for part in (root, environment.get("PYTHONPATH")) if part
        )
    return environment


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    import psutil

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


# -- the child's end -------------------------------------------------------------------------------


class Parent:
    """What a child sees of its parent. Make one before any library is loaded.

    Libraries print to descriptor 1 and may read descriptor 0: the messages move elsewhere.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "wb")
        self._writing = threading.Lock()
        os.dup2(2, 1)
        commands = os.fdopen(os.dup(0), "rb")
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(commands, self._lines), daemon=True).start()

    def next_message(self) -> dict[str, Any]:
        """Wait for what the parent says next."""
        values: dict[str, Any] = json.loads(self._lines.get())
        return values

    def tell(self, values: Mapping[str, Any], payload: bytes | memoryview = b"") -> None:
        """Send a message at once: whatever happens next, the parent gets it. From any thread."""
        stated = {**values, _PAYLOAD: len(payload)} if payload else values
        line = json.dumps(to_plain(stated)).encode() + b"\n"
        with self._writing:
            self._answers.write(line)
            self._answers.write(payload)
            self._answers.flush()


def _listen(commands: BufferedReader, lines: queue.SimpleQueue[bytes]) -> None:
    """Hand on commands; at end of file the parent is gone, even if a long call is under way."""
    for line in commands:
        lines.put(line)
    os._exit(0)
