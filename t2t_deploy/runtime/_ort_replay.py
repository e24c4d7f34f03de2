"""ONNX Runtime's calls on a GPU as CUDA graphs: one per shape, with its own buffers."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from t2t_deploy._untrusted import first_line
from t2t_deploy.errors import BackendError, MissingDependencyError
from t2t_deploy.runtime._cuda import Cuda
from t2t_deploy.runtime._session import CallTiming, TimedRun
from t2t_deploy.types import TensorSpec

DEVICE = "cuda"
REPLAYABLE = {"enable_cuda_graph": "1"}
"""Options of the CUDA provider under which `Replays` works."""
_LARGE_BYTES = 2**22
_COPIES = 4
"""What is larger is copied in so many parts side by side: one thread is slower than the bus."""
_GRAPH_ID = "gpu_graph_id"
_NO_GRAPH = "-1"
_Shapes = tuple[tuple[int, ...], ...]


@dataclass(eq=False, slots=True)
class Replays:
    """The calls of a session whose provider has the options `REPLAYABLE`, one at a time.

    ONNX Runtime launches some hundred kernels a call, with gaps; a graph is launched once. Its
    "CUDA Graphs" page has the rules: the same addresses in each call, and no two calls at once.
    """

    _ort: Any
    _session: Any
    _inputs: Sequence[TensorSpec]
    _outputs: Sequence[TensorSpec]
    _device: int
    refusal: str | None = None
    """Why calls run kernel by kernel, where a recording failed."""
    _graphs: dict[_Shapes, _Graph] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def recorded(self) -> tuple[_Shapes, ...]:
        """Input shapes with a graph, in the order of their first call."""
        return tuple(self._graphs)

    def run(self, feeds: Mapping[str, np.ndarray]) -> TimedRun:
        """One call; the first at a shape runs plainly, then it is recorded."""
        started_ns = time.perf_counter_ns()
        shapes = tuple(feeds[spec.name].shape for spec in self._inputs)
        with self._turn:
            graph = self._graphs.get(shapes)
            if graph is not None:
                return graph.run(feeds, started_ns)
            plain = self._ort.RunOptions()
            plain.add_run_config_entry(_GRAPH_ID, _NO_GRAPH)
            result = run_bound(self._ort, self._session, feeds, self._outputs, self._device, plain)
            if self.refusal is None:
                try:
                    number = len(self._graphs) + 1
                    graph = _Graph(
                        self._ort, self._session, self._device, number, feeds, result.outputs
                    )
                    graph.run(feeds, time.perf_counter_ns())
                    self._graphs[shapes] = graph
                except Exception as err:  # ONNX Runtime's errors have no common class
                    self.refusal = first_line(err)
            return result


class _Graph:
    """Buffers on the device for feeds and outputs of one set of shapes, and calls over them.

    Feeds pass through page-locked memory where cuda-python is installed: from any other the driver
    copies them piece by piece.
    """

    def __init__(
        self,
        ort: Any,
        session: Any,
        device: int,
        number: int,
        feeds: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
    ) -> None:
        self._session, self._binding = session, session.io_binding()
        self._options = ort.RunOptions()
        self._options.add_run_config_entry(_GRAPH_ID, str(number))
        new, on_device = ort.OrtValue, (DEVICE, device)
        self._inputs = {
            name: new.ortvalue_from_numpy(np.ascontiguousarray(array), *on_device)
            for name, array in feeds.items()
        }
        self._outputs = {
            name: new.ortvalue_from_shape_and_type(list(like.shape), like.dtype, *on_device)
            for name, like in outputs.items()
        }
        self._copiers = ThreadPoolExecutor(_COPIES)
        self._staged: dict[str, np.ndarray] = {}
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(BackendError, MissingDependencyError):
                cuda = Cuda(device)
                for name, array in feeds.items():
                    memory = stack.enter_context(cuda.pinned_memory(array.nbytes))
                    self._staged[name] = memory.view(array.dtype).reshape(array.shape)
            freed = weakref.finalize(self, stack.pop_all().close)
            freed.atexit = False  # the driver is gone by then
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, feeds: Mapping[str, np.ndarray], started_ns: int) -> TimedRun:
        for name, value in self._inputs.items():
            value.update_inplace(self._source(name, feeds[name]))
        copied_ns = time.perf_counter_ns()
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()
        computed_ns = time.perf_counter_ns()
        outputs = {name: value.numpy() for name, value in self._outputs.items()}
        return TimedRun(outputs, timing(started_ns, copied_ns, computed_ns))

    def _source(self, name: str, feed: np.ndarray) -> np.ndarray:
        """A feed where the device is to copy it from."""
        staged = self._staged.get(name)
        if staged is None:
            return np.ascontiguousarray(feed)
        if feed.nbytes < _LARGE_BYTES:
            staged[...] = feed
        else:
            parts = (np.array_split(array, _COPIES) for array in (staged, feed))
            list(self._copiers.map(np.copyto, *parts))
        return staged


def run_bound(
    ort: Any,
    session: Any,
    feeds: Mapping[str, np.ndarray],
    outputs: Sequence[TensorSpec],
    device: int,
    options: Any = None,
) -> TimedRun:
    """One call with its own device buffers, timed by the host, which waits for each part.

    feeds: arrays of the graph's types. outputs: what it returns. options: ``RunOptions``.
    """
    started_ns = time.perf_counter_ns()
    binding = session.io_binding()
    for name, array in feeds.items():
        # types are checked already; the device takes contiguous arrays
        source = np.ascontiguousarray(array)
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(source, DEVICE, device))
    for spec in outputs:
        binding.bind_output(spec.name, DEVICE, device)
    binding.synchronize_inputs()
    copied_ns = time.perf_counter_ns()
    session.run_with_iobinding(binding, options)
    binding.synchronize_outputs()
    computed_ns = time.perf_counter_ns()
    results = [value.numpy() for value in binding.get_outputs()]
    named = dict(zip((spec.name for spec in outputs), results, strict=True))
    return TimedRun(named, timing(started_ns, copied_ns, computed_ns))


def timing(started_ns: int, copied_ns: int, computed_ns: int) -> CallTiming:
    """The times of a call that ends now."""
    ended_ns = time.perf_counter_ns()
    return CallTiming(
        h2d_ms=(copied_ns - started_ns) / 1e6,
        kernel_ms=(computed_ns - copied_ns) / 1e6,
        d2h_ms=(ended_ns - computed_ns) / 1e6,
        end_to_end_ms=(ended_ns - started_ns) / 1e6,
    )
