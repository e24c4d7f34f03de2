"""A child process for work that may crash, eat memory or hang: both ends of the pipe.

Messages are JSON objects, one a line, with records as plain values; one with ``payload_bytes`` is
followed by that many bytes.
The child has its own session, killed with its descendants; Ctrl-C reaches the parent alone.
The child ends with the parent, however that ended.
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
from typing import IO, Any

from t2t_deploy._codec import to_plain
from t2t_deploy._limits import THREAD_VARIABLES, read_limits

CLOSE_TIMEOUT_S = 5.0
TAIL_BYTES = 4096
_POLL_S = 0.2
_LOOK_EACH = 5
_PAYLOAD = "payload_bytes"


class ChildError(Exception):
    """A child that died, does not answer, or answers nonsense; the text is one line.

    gone: the text without the end of the child's stderr.
    """

    def __init__(self, gone: str, last_words: str = "") -> None:
        super().__init__(gone + last_words)
        self.gone = gone


@dataclass(frozen=True, slots=True)
class Message:
    """A message between parent and child."""

    values: dict[str, Any]
    payload: bytes = b""


# -- the parent's end ------------------------------------------------------------------------------


class Child:
    """A child process. Use as a context manager: its exit kills all that it started.

    name: for messages.
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

    def __exit__(self, *error: object) -> None:
        self.kill()

    @property
    def is_running(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def send(self, values: Mapping[str, Any]) -> None:
        """Send a message. Raises ChildError if the child is gone."""
        try:
            self._stdin.write(json.dumps(to_plain(values)).encode() + b"\n")
            self._stdin.flush()
        except OSError as err:
            raise self._death() from err

    def next_message(
        self, timeout_s: float | None = None, *, stalled_s: float | None = None
    ) -> Message:
        """Wait for the next message; None waits as long as the process lives. Raises ChildError.

        stalled_s: how long the process, with all it started, may use no processor time.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        stall = None if stalled_s is None else _Stall(self._process.pid, stalled_s)
        while deadline is None or time.monotonic() < deadline:
            # Read before the wait: an answer sent just before death is still in the queue. The end
            # of the pipe does not show death, as a forked child may keep it open.
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
        """Kill the process and all it started; harmless after its end."""
        _kill_tree(self._process)
        self._process.wait()
        for reader in self._readers:
            reader.join(timeout=CLOSE_TIMEOUT_S)
        with contextlib.suppress(OSError):  # unsent bytes to a dead process
            self._stdin.close()

    def _death(self) -> ChildError:
        """Why the process died; waits a moment for its status and stderr."""
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
    """Whether a process and its descendants have used no processor time for long.

    It counts waits instead of reading a clock, so that a suspended machine does not count.
    """

    def __init__(self, pid: int, most_s: float) -> None:
        self._pid, self._most = pid, round(most_s / _POLL_S)
        self._waits, self._used_s = 0, -1.0

    def lasts(self) -> bool:
        """Call it after each wait of `_POLL_S`."""
        self._waits += 1
        # once a second, and at the end, as it walks over all processes
        if self._waits % _LOOK_EACH == 0 or self._waits >= self._most:
            used_s = _processor_s(self._pid)
            if used_s != self._used_s:
                self._waits, self._used_s = 0, used_s
        return self._waits >= self._most


def _processor_s(pid: int) -> float:
    """Processor time of a process and its running descendants, at the system's resolution.

    The end of one changes it too, which is as much a sign of life.
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
    if name != "SIGKILL":
        return f"died of {name}"
    allowed = read_limits().memory_words
    return f"died of {name} (often: out of memory{f'; {allowed}' if allowed else ''})"


def module_command(module: str) -> tuple[str, ...]:
    """The command that runs a module as a child."""
    return (sys.executable, "-m", module)


def child_environment(threads: int | None = None) -> dict[str, str]:
    """A child's environment: this one's, with the thread count in the libraries' variables."""
    environment = dict(os.environ)
    if threads is not None:
        environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    # The child runs in the same folder, for relative paths, but must not import a numpy.py from
    # there (from Python 3.11 on).
    environment["PYTHONSAFEPATH"] = "1"
    root = str(Path(__file__).resolve().parents[1])
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        # a checkout: the child must run the same code as its parent
        environment["PYTHONPATH"] = os.pathsep.join(
            path for path in (root, environment.get("PYTHONPATH")) if path
        )
    return environment


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    import psutil

    descendants = []
    if process.poll() is None:
        # compile pools may have left the group; without their parent they cannot be found
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
    """The child's connection to its parent. Create it before loading any library.

    Libraries print to descriptor 1 and may read descriptor 0, so the messages use others.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "wb")
        self._writing = threading.Lock()
        os.dup2(2, 1)
        commands = os.fdopen(os.dup(0), "rb")
        with open(os.devnull, "rb") as null:
            os.dup2(null.fileno(), 0)
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(commands, self._lines), daemon=True).start()

    def next_message(self) -> dict[str, Any]:
        """Wait for the parent's next message."""
        values: dict[str, Any] = json.loads(self._lines.get())
        return values

    def send(self, values: Mapping[str, Any], payload: bytes | memoryview = b"") -> None:
        """Send a message at once, so that the parent gets it in any case. From any thread."""
        header = {**values, _PAYLOAD: len(payload)} if payload else values
        line = json.dumps(to_plain(header)).encode() + b"\n"
        with self._writing:
            self._answers.write(line)
            self._answers.write(payload)
            self._answers.flush()


def _listen(commands: BufferedReader, lines: queue.SimpleQueue[bytes]) -> None:
    """Queue commands; end of file means that the parent is gone, and ends a running call too."""
    for line in commands:
        lines.put(line)
    os._exit(0)
