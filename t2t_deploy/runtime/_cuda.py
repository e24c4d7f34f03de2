"""The part of the CUDA runtime that sessions use, typed; every call is checked."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from t2t_deploy._optional import require
from t2t_deploy.errors import BackendError

CUDA_MODULE = "cuda.bindings.runtime"
# handles of cuda-python: opaque, with an int() that TensorRT takes
Stream = Any
Event = Any
Graph = Any


class Cuda:
    """One device. Raises BackendError if it is absent, MissingDependencyError.

    ordinal: which device, as in ``cuda:0``.
    """

    def __init__(self, ordinal: int = 0) -> None:
        self._api = require(CUDA_MODULE)
        self.ordinal = ordinal
        count = self._call(self._api.cudaGetDeviceCount)
        if not 0 <= ordinal < count:
            raise BackendError(
                f"there is no device cuda:{ordinal}; this machine has {count}: choose from "
                f"cuda:0 to cuda:{count - 1}"
            )
        self.activate()

    def activate(self) -> None:
        """Make it the calling thread's device; each thread starts with device 0."""
        self._call(self._api.cudaSetDevice, self.ordinal)

    def free_bytes(self) -> int:
        """Free device memory, after the use of all processes."""
        return int(self._call(self._api.cudaMemGetInfo)[0])

    def stream(self) -> AbstractContextManager[Stream]:
        """A stream that does not synchronise with the legacy default stream."""
        api = self._api
        return self._owned(
            api.cudaStreamDestroy, api.cudaStreamCreateWithFlags, api.cudaStreamNonBlocking
        )

    def event(self) -> AbstractContextManager[Event]:
        """A point in a stream that remembers when it was reached."""
        return self._owned(self._api.cudaEventDestroy, self._api.cudaEventCreate)

    @contextlib.contextmanager
    def device_memory(self, size_bytes: int) -> Iterator[int]:
        """Address of memory on the device."""
        with self._owned(self._api.cudaFree, self._api.cudaMalloc, size_bytes) as address:
            yield int(address)

    @contextlib.contextmanager
    def pinned_memory(self, size_bytes: int) -> Iterator[np.ndarray]:
        """Page-locked host memory, which the device copies directly: (size,) uint8.

        Neither the array nor a view of it may be used afterwards.
        """
        api = self._api
        usual = api.cudaHostAllocDefault
        with self._owned(api.cudaFreeHost, api.cudaHostAlloc, size_bytes, usual) as address:
            memory = (ctypes.c_uint8 * size_bytes).from_address(int(address))
            yield np.ctypeslib.as_array(memory)

    @contextlib.contextmanager
    def _owned(
        self, free: Callable[..., Any], make: Callable[..., Any], *arguments: Any
    ) -> Iterator[Any]:
        resource = self._call(make, *arguments)
        try:
            yield resource
        finally:
            self._call(free, resource)

    def copy_to_device(self, address: int, array: np.ndarray, stream: Stream) -> None:
        """Start copying a contiguous pinned array to the device."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        source = array.ctypes.data
        self._call(self._api.cudaMemcpyAsync, address, source, array.nbytes, kind, stream)

    def copy_from_device(self, array: np.ndarray, address: int, stream: Stream) -> None:
        """Start filling a contiguous pinned array from the device."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        target = array.ctypes.data
        self._call(self._api.cudaMemcpyAsync, target, address, array.nbytes, kind, stream)

    def synchronize(self, stream: Stream) -> None:
        """Wait until all work on the stream is done; an error of that work is raised here."""
        self._call(self._api.cudaStreamSynchronize, stream)

    def record(self, event: Event, stream: Stream) -> None:
        """Record the time when the stream reaches this point."""
        self._call(self._api.cudaEventRecord, event, stream)

    def elapsed_ms(self, start: Event, end: Event) -> float:
        """Time between two events that have both been reached."""
        return float(self._call(self._api.cudaEventElapsedTime, start, end))

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Graph:
        """Record what ``enqueue`` puts on the stream, without running it, as a launchable graph.

        Free it with `free_graph`. Raises BackendError for work that cannot be recorded; the stream
        is usable afterwards.
        """
        # thread-local: allocations of other threads do not break the recording
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(self._api.cudaStreamBeginCapture, stream, mode)
        try:
            enqueue()
        except BaseException:
            with contextlib.suppress(BackendError):  # a broken recording has none to return
                graph = self._call(self._api.cudaStreamEndCapture, stream)
                self._call(self._api.cudaGraphDestroy, graph)
            raise
        graph = self._call(self._api.cudaStreamEndCapture, stream)
        try:
            return self._call(self._api.cudaGraphInstantiate, graph, 0)
        finally:
            self._call(self._api.cudaGraphDestroy, graph)

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Start a graph's work."""
        self._call(self._api.cudaGraphLaunch, graph, stream)

    def free_graph(self, graph: Graph) -> None:
        """Free what `capture` returned."""
        self._call(self._api.cudaGraphExecDestroy, graph)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The value a function of the API returns, None, or several as a tuple."""
        error, *values = function(*arguments)
        if error != self._api.cudaError_t.cudaSuccess:
            # clears the error, else the next library to ask gets it
            self._api.cudaGetLastError()
            _, text = self._api.cudaGetErrorString(error)
            raise BackendError(
                f"{function.__name__} failed: {text.decode()} ({error.name}, {int(error)})"
            )
        return tuple(values) if len(values) > 1 else next(iter(values), None)
