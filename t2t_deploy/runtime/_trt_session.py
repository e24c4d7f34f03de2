"""TensorRT and TensorRT-RTX engines on a GPU: buffers, CUDA graphs, contexts for threads."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from t2t_deploy._files import atomic_write
from t2t_deploy.engine import (
    BACKEND_CLASSIC,
    BACKEND_RTX,
    MODULES,
    LoadedEngine,
    Unavailable,
    choose_profile,
    device_capability,
    load_engine,
    load_tensorrt,
    read_engine,
    sizes,
    supported_sms,
    why_no_device,
)
from t2t_deploy.errors import ArtifactError, BackendError
from t2t_deploy.runtime._cuda import CUDA_MODULE, Cuda, Graph
from t2t_deploy.runtime._session import (
    Backend,
    CallTiming,
    RuntimeSession,
    SessionRequest,
    TimedRun,
    batch_of,
    check_feeds,
    still_open,
)
from t2t_deploy.types import Target, TensorSpec

if TYPE_CHECKING:
    import tensorrt

CONTEXTS = 2
"""One computes while another copies; each has its own activations and buffers."""


class TensorRTBackend(Backend):
    """TensorRT or TensorRT-RTX, which runs the engines that it built."""

    def build_unavailable(self) -> Unavailable | None:
        """As `Backend.build_unavailable`; TensorRT needs a device, TensorRT-RTX does not."""
        missing = self.import_unavailable()
        return why_no_device() if missing is None and self is TENSORRT else missing

    def _missing(self, device: int | None) -> Iterator[Unavailable | None]:
        yield from super()._missing(device)
        yield self._absent(CUDA_MODULE)
        if self is TENSORRT_RTX:
            yield _unsupported_device(device or 0)


def _unsupported_device(ordinal: int) -> Unavailable | None:
    """Whether TensorRT-RTX has no kernels for a device."""
    supported = supported_sms(load_tensorrt(BACKEND_RTX))
    own = device_capability(ordinal)
    # portable engines may run on a device newer than the newest listed
    if not supported or own is None or own in supported or int(own) > max(map(int, supported)):
        return None
    return Unavailable(
        f"TensorRT-RTX has no kernels for compute capability {own} (it has {', '.join(supported)})",
        "use backend ort-cuda, ort-tensorrt or tensorrt",
    )


class TensorRTSession(RuntimeSession):
    """An engine on one device; `run` may be called from several threads.

    Of the request, cache: folder for the kernels that TensorRT-RTX compiles here. cuda_graph:
    replay each batch size as one graph, recorded after its first call.
    contexts: most execution contexts per profile; further threads wait for one.

    Raises ArtifactError for a missing file, EngineError for a file that is not trusted or no engine
    of this runtime, BackendError where device or driver refuse, MissingDependencyError.
    """

    def __init__(self, request: SessionRequest, *, contexts: int = CONTEXTS) -> None:
        trt, path = load_tensorrt(request.backend), request.path
        self.backend = request.backend
        serialized = read_engine(path, request.sha256)
        self._cuda = Cuda(request.device or 0)
        engine = load_engine(trt, serialized, path.name)
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.profiles = engine.profiles
        self.graph_refusal: str | None = None
        """Why calls are not replayed as graphs, if that was tried."""
        self._captured: set[int] = set()
        self._cuda_graph = request.cuda_graph
        self._engine: LoadedEngine | None = engine
        cache = None if request.cache is None else request.cache / path.with_suffix(".kernels").name
        self._settings = _RuntimeSettings(engine, cache)
        self._pools = [
            Pool(functools.partial(self._new_context, index), _Context.close, contexts)
            for index in range(len(engine.profiles))
        ]
        try:
            with self._pools[0].lend():  # a bad engine fails here, not in a call
                pass
        except BaseException:
            self.close()
            raise

    def _compute(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._run(feeds, timed=False).outputs

    def timed_run(self, feeds: Mapping[str, np.ndarray]) -> TimedRun:
        """As `run`, with events between copies and kernels (some microseconds)."""
        self.check_process()
        return self._run(feeds, timed=True)

    @property
    def captured_batches(self) -> tuple[int, ...]:
        """Batch sizes with a recorded graph, ascending."""
        return tuple(sorted(self._captured))

    def _close(self) -> None:
        """Contexts and buffers, those in use after their call; save the cache."""
        with contextlib.ExitStack() as stack:  # in reverse order, all of them if one raises
            stack.callback(setattr, self, "_engine", None)
            stack.callback(self._settings.forget)
            for pool in self._pools:
                stack.callback(pool.close)
            stack.callback(self._settings.save)
            self._cuda.activate()

    def _run(self, feeds: Mapping[str, np.ndarray], *, timed: bool) -> TimedRun:
        started_ns = time.perf_counter_ns()
        check_feeds(self.inputs, feeds)
        batch = batch_of(self.inputs, feeds)
        pool = self._pools[choose_profile(self.profiles, batch)]
        self._cuda.activate()
        with pool.lend() as context:
            outputs = context.run(feeds, batch, timed=timed)
            end_to_end_ms = (time.perf_counter_ns() - started_ns) / 1e6
            times_ms = context.times_ms() if timed else (0.0, 0.0, 0.0)
            if self._cuda_graph and batch not in context.graphs:
                self._capture(context, batch)
        return TimedRun(outputs, CallTiming(*times_ms, end_to_end_ms))

    def _capture(self, context: _Context, batch: int) -> None:
        try:
            context.capture(batch)
            self._captured.add(batch)
        except BackendError as err:
            # the same kernels run one by one: slower, but correct
            self._cuda_graph, self.graph_refusal = False, str(err)

    def _new_context(self, index: int) -> _Context:
        return _Context(self._cuda, still_open(self._engine), self._settings.config, index)


TENSORRT, TENSORRT_RTX = (
    TensorRTBackend(
        name=name,
        about=about,
        takes="engine",
        module=MODULES[name],
        open=TensorRTSession,
        needs_gpu=True,
        cuda_graphs=True,
        made_for=made_for,
    )
    for name, about, made_for in (
        (BACKEND_CLASSIC, "TensorRT", ()),
        (BACKEND_RTX, "TensorRT for RTX", (Target.TENSORRT,)),
    )
)


class _RuntimeSettings:
    """Settings of contexts, where the runtime has any, and RTX's cache of compiled kernels."""

    def __init__(self, loaded: LoadedEngine, cache_path: Path | None) -> None:
        self.config: Any = None
        self._cache: Any = None
        self._path = cache_path
        self._stored = b""
        if not hasattr(loaded.engine, "create_runtime_config"):
            return
        self.config = loaded.engine.create_runtime_config()
        if hasattr(self.config, "dynamic_shapes_kernel_specialization_strategy"):
            # lazy specialisation changes kernels between calls: other bits, slow ones in the graph
            rtx: Any = loaded.trt  # in no stub of TensorRT
            strategy = rtx.DynamicShapesKernelSpecializationStrategy.EAGER
            self.config.dynamic_shapes_kernel_specialization_strategy = strategy
        if self._path is None or not hasattr(self.config, "create_runtime_cache"):
            return
        self._cache = self.config.create_runtime_cache()
        if self._path.is_file():
            self._stored = self._path.read_bytes()
            # TensorRT refuses one of another driver, device or release; it is replaced at the end
            self._cache.deserialize(self._stored)
        self.config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the compiled kernels, once, if there are new ones."""
        cache, self._cache = self._cache, None
        if cache is None or self._path is None:
            return
        content = bytes(cache.serialize())
        if content == self._stored:
            return
        try:
            # sessions in other processes write the same file
            with atomic_write(self._path) as temporary:
                temporary.write_bytes(content)
        except ArtifactError as err:
            raise BackendError(f"cannot save compiled kernels: {err}") from err

    def forget(self) -> None:
        """Drop references to the engine."""
        self.config = self._cache = None


class _Context:
    """One execution context at one profile, its stream, and buffers for its largest batch.

    Addresses never change, so that a graph stays valid as long as the context.
    """

    def __init__(self, cuda: Cuda, loaded: LoadedEngine, config: Any, index: int) -> None:
        self._cuda, self._loaded = cuda, loaded
        self.graphs: dict[int, Graph] = {}
        self._shapes: dict[int, dict[str, tuple[int, ...]]] = {}
        self._batch: int | None = None
        self._device: dict[str, int] = {}
        self._host: dict[str, np.ndarray] = {}
        with contextlib.ExitStack() as stack:
            self._stream = stack.enter_context(cuda.stream())
            self._events = [stack.enter_context(cuda.event()) for _ in range(4)]
            self._context = self._new_context(config)
            stack.callback(setattr, self, "_context", None)  # before its stream
            self._check(
                self._context.set_optimization_profile_async(index, int(self._stream)),
                f"profile {index}",
            )
            cuda.synchronize(self._stream)
            largest = loaded.profiles[index].max
            self._set_batch(largest)
            for spec in (*loaded.inputs, *loaded.outputs):
                shape = self._shapes[largest][spec.name]
                size_bytes = buffer_bytes(spec, shape)
                address = stack.enter_context(cuda.device_memory(size_bytes))
                self._device[spec.name] = address
                self._host[spec.name] = stack.enter_context(cuda.pinned_memory(size_bytes))
                self._check(
                    self._context.set_tensor_address(spec.name, address), f"address of {spec.name}"
                )
            stack.callback(self._free_graphs)
            stack.callback(cuda.synchronize, self._stream)
            self._owned = stack.pop_all()

    def run(
        self, feeds: Mapping[str, np.ndarray], batch: int, *, timed: bool
    ) -> dict[str, np.ndarray]:
        """Copy in, compute, copy out, wait."""
        if batch not in self.graphs:
            self._set_batch(batch)
        arguments = {spec.name: self._staged(spec, batch) for spec in self._loaded.inputs}
        for name, staged in arguments.items():
            np.copyto(staged, feeds[name])
        self._mark(0, timed)
        for name, staged in arguments.items():
            self._cuda.copy_to_device(self._device[name], staged, self._stream)
        self._mark(1, timed)
        if batch in self.graphs:
            self._cuda.launch(self.graphs[batch], self._stream)
        else:
            self._enqueue()
        self._mark(2, timed)
        results = {spec.name: self._staged(spec, batch) for spec in self._loaded.outputs}
        for name, staged in results.items():
            self._cuda.copy_from_device(staged, self._device[name], self._stream)
        self._mark(3, timed)
        self._cuda.synchronize(self._stream)
        return {name: staged.copy() for name, staged in results.items()}

    def times_ms(self) -> tuple[float, float, float]:
        """Copying in, computing and copying out of the last timed call."""
        start, copied, computed, end = self._events
        return (
            self._cuda.elapsed_ms(start, copied),
            self._cuda.elapsed_ms(copied, computed),
            self._cuda.elapsed_ms(computed, end),
        )

    def capture(self, batch: int) -> None:
        """Record the batch that was just run: the setup of a plain run must not be recorded.

        Raises BackendError where the engine cannot be recorded.
        """
        context, stream = self._context, int(self._stream)
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(stream):
            raise BackendError("the engine uses the host between its kernels")
        self.graphs[batch] = self._cuda.capture(self._stream, self._enqueue)

    def close(self) -> None:
        """Free everything, after running work."""
        self._cuda.activate()
        self._owned.close()

    def _new_context(self, config: Any) -> tensorrt.IExecutionContext:
        settings = {} if config is None else {"runtime_config": config}
        context = self._loaded.engine.create_execution_context(**settings)
        self._check(context is not None, "an execution context")
        return context

    def _set_batch(self, batch: int) -> None:
        if batch == self._batch:
            return
        self._batch = None
        shapes = {}
        for spec in self._loaded.inputs:
            shapes[spec.name] = (batch, *(int(dim or 0) for dim in spec.shape[1:]))
            shown = "x".join(map(str, shapes[spec.name]))
            self._check(
                self._context.set_input_shape(spec.name, shapes[spec.name]),
                f"shape {shown} of {spec.name}",
            )
        for spec in self._loaded.outputs:
            shapes[spec.name] = sizes(self._context.get_tensor_shape(spec.name))
        self._shapes[batch] = shapes
        self._batch = batch

    def _staged(self, spec: TensorSpec, batch: int) -> np.ndarray:
        """The slice of the pinned buffer that a batch fills, as its tensor."""
        shape = self._shapes[batch][spec.name]
        used = self._host[spec.name][: buffer_bytes(spec, shape)]
        return used.view(np.dtype(spec.dtype)).reshape(shape)

    def _enqueue(self) -> None:
        self._check(self._context.execute_async_v3(int(self._stream)), "execution")

    def _mark(self, index: int, timed: bool) -> None:
        if timed:
            self._cuda.record(self._events[index], self._stream)

    def _check(self, accepted: bool, what: str) -> None:
        if not accepted:
            why = self._loaded.log.errors() or "it gives no reason"
            raise BackendError(f"TensorRT refused {what}: {why}")

    def _free_graphs(self) -> None:
        while self.graphs:
            self._cuda.free_graph(self.graphs.popitem()[1])


def buffer_bytes(spec: TensorSpec, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of that shape. Raises BackendError for an unknown dimension."""
    if min(shape, default=1) < 0:
        raise BackendError(
            f"the shape of {spec.name!r} ({shape}) is unknown before the engine runs: "
            "export without operators whose shape depends on values"
        )
    return math.prod(shape) * np.dtype(spec.dtype).itemsize


_T = TypeVar("_T")


class Pool(Generic[_T]):
    """Creates items on demand, at most ``limit``; the last one returned is lent first.

    make, free: called outside the pool's lock. An item whose block raised is freed, not lent again:
    its state is unknown.
    """

    def __init__(self, make: Callable[[], _T], free: Callable[[_T], None], limit: int) -> None:
        self._make, self._free = make, free
        self._idle: list[_T] = []
        self._closed = False
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(limit)

    @contextlib.contextmanager
    def lend(self) -> Iterator[_T]:
        """One item, for the block; waits while all are lent. Raises BackendError once closed."""
        with self._slots:
            item, sound = self._take(), False
            try:
                yield item
                sound = True
            finally:
                with self._lock:
                    kept = sound and not self._closed
                    if kept:
                        self._idle.append(item)
                if not kept:
                    self._free(item)

    def close(self) -> None:
        """Free the idle items; those lent are freed when they come back. Twice is harmless."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        self._slots.release()  # wakes one of those that wait, which is refused and wakes the next
        with contextlib.ExitStack() as stack:  # frees the others if one raises
            for item in idle:
                stack.callback(self._free, item)

    def _take(self) -> _T:
        with self._lock:
            if self._closed:
                raise BackendError("the session is closed; open a new one")
            if self._idle:
                return self._idle.pop()
        return self._make()
