"""TensorRT's Python module as a value: what it can target, what it says, how it is stopped.

TensorRT and TensorRT-RTX share their builder interface, so the engine code takes the module as an
argument. Enum values differ between them: always go by name, and ask ``hasattr`` before a feature.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from t2t_deploy._optional import require
from t2t_deploy.errors import EngineError, UsageError

BACKEND_RTX = "tensorrt-rtx"
PORTABLE = ("portable",)
NATIVE = ("native",)
HOPPER = "90"

# phase, steps done, steps in all
Progress = Callable[[str, int, int], None]
_T = TypeVar("_T")


def load_rtx() -> Any:
    """The TensorRT-RTX bindings. Raises MissingDependencyError."""
    return require("tensorrt_rtx")


def parse_sm(text: str) -> tuple[str, ...]:
    """Read ``86,89``, ``portable`` or ``native``; ``8.6`` and ``sm86`` also mean 86.

    The result is sorted and holds each target once, so that the order typed does not change the
    engine. Whether a target can be built for is the builder's to say. Raises UsageError.
    """
    names = [part.strip().lower() for part in text.split(",")]
    if names in (["portable"], ["native"]):
        return (names[0],)
    found = [re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", name) for name in names]
    if not all(found):
        raise UsageError(
            f"GPU targets are {text!r}; expected compute capabilities such as 86,89, or the one "
            "word 'portable' or 'native'"
        )
    return tuple(sorted({match[1] + match[2] for match in found if match}, key=int))


def supported_sms(trt: Any) -> tuple[str, ...]:
    """The compute capabilities that the module's builder can target, ascending."""
    if not hasattr(trt, "ComputeCapability"):
        return ()
    members = trt.ComputeCapability.__members__
    return tuple(sorted((name[2:] for name in members if re.fullmatch(r"SM\d+", name)), key=int))


def check_sms(trt: Any, sms: tuple[str, ...]) -> None:
    """Raise EngineError unless the module's builder can target every one of these numbers."""
    known = supported_sms(trt)
    unknown = [sm for sm in sms if sm not in known]
    if not unknown:
        return
    expected = ", ".join(known) or "only the device of this machine"
    hopper = (
        "; TensorRT-RTX has no Hopper (90): use the onnxruntime-gpu or TensorRT backend there"
        if HOPPER in unknown
        else ""
    )
    raise EngineError(
        f"this builder (version {trt.__version__}) cannot target SM {', '.join(unknown)}; it "
        f"targets {expected}: choose from those, or 'portable'{hopper}"
    )


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


def new_logger(trt: Any, log: BuilderLog) -> Any:
    """An ``ILogger`` that keeps every message, down to the verbose ones."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base exists only at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
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


def new_monitor(trt: Any, progress: Progress | None, cancel: Cancel) -> Any:
    """An ``IProgressMonitor`` that reports steps and stops the build once ``cancel`` is requested.

    Nothing may leave its methods: the bindings print an escaping exception to stderr and go on.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # as above
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            if progress is not None and not cancel.requested.is_set():
                try:
                    progress(phase, step + 1, self.steps.get(phase, step + 1))
                except BaseException as err:
                    cancel.request(err)
            return not cancel.requested.is_set()

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()


def run_cancellable(work: Callable[[], _T], cancel: Cancel) -> _T:
    """Run ``work`` on its own thread and wait for it, so that Ctrl-C is noticed meanwhile.

    The builder releases the interpreter lock but holds its thread for seconds, and an exception
    that a signal raises inside its callbacks is swallowed (measured: the build runs to its end).
    Here the signal reaches the waiting thread; ``work`` is asked to stop, always waited for (it
    uses the caller's objects), and then the exception is raised.
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
