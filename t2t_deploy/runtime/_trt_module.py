"""TensorRT's Python module as a value: its interface, its log, how it is stopped.

TensorRT and TensorRT-RTX share their builder interface, so the engine code takes the module as an
argument, typed by what it uses of it. Types come from the stubs of whichever is type-checked (see
the Makefile); enum values differ between them: always go by name, and ask ``hasattr`` before a
feature that only one has.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, SupportsInt, TypeVar, cast

from t2t_deploy._optional import require

if TYPE_CHECKING:
    import tensorrt

# phase, steps done, steps in all
Progress = Callable[[str, int, int], None]
_T = TypeVar("_T")


class TensorRT(Protocol):
    """What is used of the module, alike in TensorRT 10, 11 and TensorRT-RTX 1."""

    __version__: str
    Builder: type[tensorrt.Builder]
    BuilderFlag: type[tensorrt.BuilderFlag]
    DataType: type[tensorrt.DataType]
    Dims: type[tensorrt.Dims]
    IConvolutionLayer: type[tensorrt.IConvolutionLayer]
    ILogger: type[tensorrt.ILogger]
    IMatrixMultiplyLayer: type[tensorrt.IMatrixMultiplyLayer]
    IProgressMonitor: type[tensorrt.IProgressMonitor]
    LayerType: type[tensorrt.LayerType]
    MatrixOperation: type[tensorrt.MatrixOperation]
    MemoryPoolType: type[tensorrt.MemoryPoolType]
    NetworkDefinitionCreationFlag: type[tensorrt.NetworkDefinitionCreationFlag]
    OnnxParser: type[tensorrt.OnnxParser]
    ProfilingVerbosity: type[tensorrt.ProfilingVerbosity]
    Runtime: type[tensorrt.Runtime]
    TensorIOMode: type[tensorrt.TensorIOMode]
    TensorLocation: type[tensorrt.TensorLocation]


def load_rtx() -> TensorRT:
    """The TensorRT-RTX bindings. Raises MissingDependencyError."""
    return cast(TensorRT, require("tensorrt_rtx"))


@dataclass(slots=True)
class BuilderLog:
    """Everything the builder said: one ``SEVERITY: message`` per entry, in order."""

    entries: list[tuple[str, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The whole log, as saved to a file."""
        return "\n".join(f"{severity}: {message}" for severity, message in self.entries) + "\n"

    def errors(self, last: int = 3) -> str:
        """The last error messages in one line."""
        found = [text for kind, text in self.entries if kind in ("ERROR", "INTERNAL_ERROR")]
        return "; ".join(" ".join(text.split()) for text in found[-last:])


def to_bytes(memory: tensorrt.IHostMemory) -> bytes:
    """A copy of what TensorRT serialised."""
    return bytes(cast(Any, memory))  # a buffer, which only one of the stubs knows


def new_logger(trt: TensorRT, log: BuilderLog) -> tensorrt.ILogger:
    """An ``ILogger`` that keeps every message, down to the verbose ones."""
    if TYPE_CHECKING:
        from tensorrt import ILogger
    else:
        ILogger = trt.ILogger

    class Logger(ILogger):  # type: ignore[misc, unused-ignore]  # without stubs
        def __init__(self) -> None:
            ILogger.__init__(self)

        def log(self, severity: tensorrt.ILogger.Severity, message: str) -> None:
            log.entries.append((severity.name, message))

    return Logger()


class Cancel:
    """Asks a running build to stop, and keeps the exception that asked."""

    __slots__ = ("error", "requested")

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.error: BaseException | None = None

    def request(self, error: BaseException) -> None:
        """Stop the build at its next step; the first exception is the one re-raised."""
        if self.error is None:
            self.error = error
        self.requested.set()


def new_monitor(
    trt: TensorRT, progress: Progress | None, cancel: Cancel
) -> tensorrt.IProgressMonitor:
    """An ``IProgressMonitor`` that reports steps and stops the build once ``cancel`` is requested.

    Nothing may leave its methods: the bindings print an escaping exception to stderr and go on.
    """
    if TYPE_CHECKING:
        from tensorrt import IProgressMonitor
    else:
        IProgressMonitor = trt.IProgressMonitor

    class Monitor(IProgressMonitor):  # type: ignore[misc, unused-ignore]  # without stubs
        def __init__(self) -> None:
            IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: SupportsInt) -> None:
            self.steps[phase] = int(steps)

        def step_complete(self, phase: str, step: SupportsInt) -> bool:
            if progress is not None and not cancel.requested.is_set():
                try:
                    done = int(step) + 1
                    progress(phase, done, self.steps.get(phase, done))
                except BaseException as err:
                    cancel.request(err)
            return not cancel.requested.is_set()

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()


def _free_locals(err: BaseException | None) -> None:
    """Drop what the frames of an exception hold, here and now.

    Kept by a traceback, a builder would be freed by the garbage collector, which may well run
    inside the logger's callback: that is called with the lock held which freeing a builder takes,
    and the process hangs (seen).
    """
    while err is not None:
        traceback.clear_frames(err.__traceback__)
        err = err.__context__


def run_cancellable(work: Callable[[], _T], cancel: Cancel) -> _T:
    """Run ``work`` on its own thread and wait for it, so that Ctrl-C is noticed meanwhile.

    The builder releases the interpreter lock but holds its thread for seconds, and an exception
    that a signal raises inside its callbacks is swallowed (measured: the build runs to its end).
    Here the signal reaches the waiting thread; ``work`` is asked to stop, always waited for (it
    uses the caller's objects), and then the exception is raised, its frames without their locals.
    """
    results: list[_T] = []
    begun, ended = threading.Event(), threading.Event()

    def body() -> None:
        begun.set()
        try:
            if not cancel.requested.is_set():
                results.append(work())
        except BaseException as err:
            cancel.request(err)
            _free_locals(err)
        finally:
            ended.set()

    thread = threading.Thread(target=body, name="engine-build")
    try:
        thread.start()
    except BaseException as err:
        cancel.request(err)
        # start() waits for the thread, so the signal mostly finds it running
        if not begun.wait(1):
            raise
    while True:
        try:
            # a bounded wait, because an unbounded one ignores Ctrl-C on Windows
            while not ended.wait(0.2):
                pass
            thread.join()
            break
        except BaseException as err:
            cancel.request(err)
    if cancel.error is not None:
        raise cancel.error
    return results[0]
