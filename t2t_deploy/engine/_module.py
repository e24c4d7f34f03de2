"""TensorRT's Python module as a value: its interface, its log, its progress."""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, SupportsInt, cast

from t2t_deploy._optional import require

if TYPE_CHECKING:
    import tensorrt

BACKEND_RTX = "tensorrt-rtx"
BACKEND_CLASSIC = "tensorrt"
MODULES = {BACKEND_RTX: "tensorrt_rtx", BACKEND_CLASSIC: "tensorrt"}
"""Python's name of each."""
# phase, steps done, steps in all
Progress = Callable[[str, int, int], None]


class TensorRT(Protocol):
    """The part of the module in use, the same in TensorRT 10, 11 and TensorRT-RTX 1.

    Values of enumerations differ: go by name. Ask ``hasattr`` before a feature that only one has.
    """

    __name__: str
    __version__: str
    Builder: type[tensorrt.Builder]
    BuilderFlag: type[tensorrt.BuilderFlag]
    DataType: type[tensorrt.DataType]
    Dims: type[tensorrt.Dims]
    HardwareCompatibilityLevel: type[tensorrt.HardwareCompatibilityLevel]
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


def load_tensorrt(backend: str = BACKEND_RTX) -> TensorRT:
    """The bindings of one of `MODULES`. Raises MissingDependencyError."""
    return cast(TensorRT, require(MODULES[backend]))


@dataclass(slots=True)
class BuilderLog:
    """The builder's messages: one ``SEVERITY: message`` per entry, in order.

    on_entry: called with each entry as it comes.
    """

    entries: MutableSequence[tuple[str, str]] = field(default_factory=list)
    on_entry: Callable[[tuple[str, str]], None] | None = None

    def add(self, severity: str, message: str) -> None:
        """Keep an entry."""
        self.entries.append((severity, message))
        if self.on_entry is not None:
            self.on_entry((severity, message))

    @property
    def text(self) -> str:
        """The log as saved to a file."""
        return "\n".join(f"{severity}: {message}" for severity, message in self.entries) + "\n"

    def errors(self, last: int = 3) -> str:
        """The last error messages in one line."""
        messages = [text for kind, text in self.entries if kind in ("ERROR", "INTERNAL_ERROR")]
        return "; ".join(" ".join(text.split()) for text in messages[-last:])


def to_bytes(memory: tensorrt.IHostMemory) -> bytes:
    """A copy of what TensorRT serialised."""
    return bytes(cast(Any, memory))  # a buffer, but not in every stub


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
            log.add(severity.name, message)

    return Logger()


def new_monitor(trt: TensorRT, progress: Progress | None) -> tensorrt.IProgressMonitor:
    """An ``IProgressMonitor`` that reports steps.

    Its methods must not raise: the bindings print an escaping exception to stderr and go on.
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
            if progress is not None:
                done = int(step) + 1
                progress(phase, done, self.steps.get(phase, done))
            return True

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()
