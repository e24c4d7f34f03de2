"""The interface of every runtime: its description, and sessions that check what they take."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar, final, runtime_checkable

import numpy as np

from t2t_deploy._forks import leak
from t2t_deploy._limits import read_limits
from t2t_deploy._optional import EXTRAS, WHEELS, is_installed, require
from t2t_deploy.engine import Unavailable, why_no_device
from t2t_deploy.errors import ArtifactError, BackendError, InputError, MissingDependencyError
from t2t_deploy.graph import check_onnx_file
from t2t_deploy.types import Precision, Target, TensorSpec

_T = TypeVar("_T")
_S = TypeVar("_S", bound="RuntimeSession")


class Session(Protocol):
    """A loaded model. Close it, or use it as a context manager.

    `run` may be called from any number of threads, and gives the same bits as in one thread: side
    by side on PyTorch and ONNX Runtime, in turns on OpenVINO and where ONNX Runtime replays CUDA
    graphs, as many at once as were asked for in streams or as an engine has contexts. `close` may
    come from any thread: running calls finish, waiting and later ones are refused. Feeds must not
    change during a call; outputs belong to the caller.
    """

    backend: str
    """Name of the runtime, as on the command line."""
    inputs: tuple[TensorSpec, ...]
    """What `run` takes."""
    outputs: tuple[TensorSpec, ...]
    """What `run` returns."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs.

        Raises InputError where a name, dtype or shape does not fit, BackendError once closed.
        """

    def close(self) -> None:
        """Free the session's resources; a second call does nothing."""

    def __enter__(self: _T) -> _T:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise BackendError(
            "a session cannot be pickled or copied: its runtime is part of this process; send what "
            "it was opened with, and open it there"
        )


class RuntimeSession(Session):
    """A session of a runtime, whose threads and device belong to the process that opened it.

    In a fork of that process `run` refuses and `close` does nothing, unless `_goes_on` says
    otherwise. A runtime computes in `_compute` and frees in `_close`; other ways to compute begin
    with `check_process`.
    """

    _process: int
    _left_behind = False

    def __new__(cls: type[_S], *_: object, **__: object) -> _S:
        session = super().__new__(cls)
        session._process = os.getpid()
        _sessions.add(session)
        return session

    @final
    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `Session.run`. Raises BackendError in a forked process too."""
        self.check_process()
        return self._compute(feeds)

    @final
    def close(self) -> None:
        """Free the session's resources; in a forked process they are its parent's."""
        if not self._left_behind:
            self._close()

    def check_process(self) -> None:
        """Raise BackendError in a forked process."""
        if self._left_behind:
            raise BackendError(
                f"the session was opened in process {self._process}: open it in each worker (no "
                "preload, or spawn)"
            )

    def _compute(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def _goes_on(self) -> bool:
        """Whether calls go on in a forked process, once it is made ready for them; no lock is free.

        What the session held is leaked: it may replace it.
        """
        return False

    def _enter_child(self) -> None:
        # Libraries wait in destructors for threads that do not exist here.
        for held in vars(self).values():
            leak(held)
        self._left_behind = not self._goes_on()


_sessions: weakref.WeakSet[RuntimeSession] = weakref.WeakSet()


def _enter_child() -> None:
    for session in _sessions:
        session._enter_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_enter_child)


@dataclass(frozen=True, slots=True)
class CallTiming:
    """The time of one call on a device, in parts, ms.

    h2d, kernel, d2h: copying in, computing, copying out, by the device's clock. end_to_end: by the
    host's clock, with copying from and to the caller's arrays.
    """

    h2d_ms: float
    kernel_ms: float
    d2h_ms: float
    end_to_end_ms: float


@dataclass(frozen=True, slots=True)
class TimedRun:
    """The outputs of one call, and its times."""

    outputs: dict[str, np.ndarray]
    timing: CallTiming


@runtime_checkable
class TimedSession(Protocol):
    """A session that times copies and computing separately."""

    def timed_run(self, feeds: Mapping[str, np.ndarray]) -> TimedRun:
        """As `Session.run`, with times."""


@runtime_checkable
class ReplayingSession(Protocol):
    """A session that replays its calls as CUDA graphs, or says why not."""

    @property
    def graph_refusal(self) -> str | None:
        """Why calls run kernel by kernel, where a recording failed."""


@runtime_checkable
class ReferenceSession(Protocol):
    """A session of the reference, which knows the typical norm of its logits."""

    @property
    def typical_norm(self) -> float:
        """See `T2TViT.typical_norm`."""


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """Everything needed to open a session, in this process or, as plain values, another.

    path: the ONNX file, the engine, or the safetensors weights (eager, which needs ``config``).
    threads: intra-op threads; None is as `session_threads`.
    device: ordinal of the CUDA device; None is 0 for a backend that needs one, and the CPU for
        PyTorch.
    precision: of the graph, for runtimes that need it; of PyTorch's autocast.
    cache: folder for what a runtime compiles and can read again; None keeps nothing.
    cuda_graph: whether a backend that can replays a batch as one CUDA graph.
    sha256: of a trusted engine, as in `engine.read_engine`; None trusts none.
    batch: the size of most calls, for runtimes that compile for a size; None is unknown.
    base: what the float32 tensors of an 8-bit graph are computed in; None is float32.
    streams: how many calls are computed side by side on the CPU; they share the threads.
    """

    backend: str
    path: Path
    threads: int | None = None
    config: Mapping[str, Any] | None = None
    device: int | None = None
    precision: Precision | None = None
    cache: Path | None = None
    cuda_graph: bool = True
    sha256: str | None = None
    batch: int | None = None
    base: Precision | None = None
    streams: int = 1

    @property
    def threads_each(self) -> int | None:
        """Threads of one stream, at least one."""
        if self.streams == 1:
            return self.threads
        threads = session_threads(self.threads) or read_limits().processors
        return max(threads // self.streams, 1)


@dataclass(frozen=True, slots=True)
class ProductCounts:
    """How many matrix products a runtime multiplies in integers, and how many in floats.

    A fused attention counts as one.
    """

    integer: int
    float: int


@dataclass(frozen=True)
class Backend:
    """A runtime by its command-line name.

    module: its optional package. open: opens a session if `run_unavailable` is None;
    raises as `open_session`.
    """

    name: str
    about: str
    takes: str
    """weights, onnx or engine"""
    module: str
    open: Callable[[SessionRequest], Session]
    needs_gpu: bool = False
    """for every request"""
    cuda_graphs: bool = False
    """whether `SessionRequest.cuda_graph` changes anything"""
    compiles: bool = False
    """whether opening it on a CPU takes minutes"""
    made_for: tuple[Target, ...] = ()
    """the targets whose graphs it usually runs"""
    float32_in: tuple[Precision, ...] = (Precision.FP32,)
    """precisions it can compute float32 graphs in"""
    why_no_dynamic_ranges: str | None = None
    """why 8-bit products may not take their ranges at run time; None if they may"""

    @property
    def extra(self) -> str:
        """The extra of t2t-deploy that installs it."""
        return EXTRAS[self.module]

    @property
    def tools(self) -> tuple[str, ...]:
        """The distributions whose versions its results depend on."""
        return WHEELS.get(self.module, (self.module,))

    @property
    def on_cpu(self) -> bool:
        """Whether it runs ONNX files without a device, so that they can be compared on it."""
        return self.takes == "onnx" and not self.needs_gpu

    def run_unavailable(self, device: int | None = None) -> Unavailable | None:
        """The first reason why it cannot run here; opens nothing.

        device: ordinal of the CUDA device; None as in `SessionRequest`.
        """
        return next(filter(None, self._missing(device)), None)

    def import_unavailable(self) -> Unavailable | None:
        """Why its package cannot be imported: it is absent or broken."""
        absent = self._absent(self.module)
        if absent is not None:
            return absent
        try:
            require(self.module)
        except MissingDependencyError as err:
            cause = err.__cause__
            return Unavailable(
                f"{self.module} is installed but does not import ({type(cause).__name__}: {cause})",
                "reinstall it",
            )
        return None

    def build_unavailable(self) -> Unavailable | None:
        """The first reason why its engines cannot be built here, if it has any."""
        return self.import_unavailable()

    def why_not_in(self, precision: Precision) -> str | None:
        """Why it cannot compute in a precision, None if it can; only for one that runs here."""
        return None

    def count_products(self, request: SessionRequest) -> ProductCounts | None:
        """What it makes of the products of an 8-bit file; None where it does not tell.

        Raises as `open_session`.
        """
        return None

    def _missing(self, device: int | None) -> Iterator[Unavailable | None]:
        """Each requirement, in the order to fix them: why it is missing, or None."""
        if self.needs_gpu:
            yield why_no_device(device or 0)
        yield self._absent(self.module)
        if self.needs_gpu:
            yield self.import_unavailable()

    def _absent(self, module: str) -> Unavailable | None:
        if is_installed(module):
            return None
        return Unavailable(f"{module} is not installed", f"pip install 't2t-deploy[{self.extra}]'")


def check_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, np.ndarray]) -> None:
    """Raise InputError unless the feeds are exactly the specified tensors, of finite numbers."""
    names = [spec.name for spec in specs]
    if sorted(feeds) != sorted(names):
        raise InputError(
            f"inputs given: {', '.join(sorted(feeds)) or 'none'}; this model takes "
            f"{', '.join(names)}: pass exactly those"
        )
    for spec in specs:
        array = feeds[spec.name]
        if not spec.accepts(array):
            raise InputError(
                f"input {spec.name!r} is {array.dtype} {array.shape}; expected {spec}: convert or "
                "resize it"
            )
        if array.size == 0:
            raise InputError(f"input {spec.name!r} is an empty batch; pass at least one picture")
        # One sum costs a tenth of testing every number, and is not finite where one is not.
        if array.dtype.kind == "f" and not np.isfinite(array.sum()):
            bad = ~np.isfinite(array)
            if bad.any():
                first = tuple(int(index) for index in np.argwhere(bad)[0])
                raise InputError(
                    f"input {spec.name!r} has {int(bad.sum())} numbers that are NaN or infinite, "
                    f"the first at {first}; expected finite numbers: check their source"
                )


def session_threads(asked: int | None) -> int | None:
    """Threads of a session: those asked for, else what a container's quota leaves.

    None leaves the runtime's choice, at most one a core: it heeds an affinity and no quota.
    """
    limits = read_limits()
    if asked is not None or not limits.narrowed:
        return asked
    import psutil

    return min(limits.processors, psutil.cpu_count(logical=False) or limits.processors)


def batch_of(inputs: Sequence[TensorSpec], feeds: Mapping[str, np.ndarray]) -> int:
    """The batch of feeds that `check_feeds` has passed. Raises InputError for several."""
    batches = {spec.name: int(feeds[spec.name].shape[0]) for spec in inputs}
    if len(set(batches.values())) > 1:
        shown = ", ".join(f"{name} {batch}" for name, batch in batches.items())
        raise InputError(f"the inputs' batches differ ({shown}); pass one batch of all")
    return next(iter(batches.values()))


def still_open(resource: _T | None) -> _T:
    """A session's resource, None once it is closed. Raises BackendError then."""
    if resource is None:
        raise BackendError("the session is closed; open a new one")
    return resource


def check_model_file(path: Path) -> None:
    """Raise ArtifactError where an ONNX file is missing or unsafe to parse."""
    if not path.is_file():
        raise ArtifactError(f"there is no file {path}; export the model first")
    check_onnx_file(path)


def fill_batch(images: np.ndarray, batch: int | None) -> np.ndarray:
    """A batch (n, ...) of at least ``batch``: the last image is repeated where n is less.

    batch: the smallest that a session takes, None for any. The caller drops results of repetitions.
    """
    missing = (batch or 0) - len(images)
    if missing <= 0:
        return images
    return np.concatenate((images, np.repeat(images[-1:], missing, axis=0)))
