"""OpenVINO sessions on the CPU, in the requested precision or not at all."""

from __future__ import annotations

import functools
import os
import queue
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from t2t_deploy._optional import require
from t2t_deploy.engine import Unavailable
from t2t_deploy.errors import ArtifactError, BackendError
from t2t_deploy.runtime._session import (
    Backend,
    ProductCounts,
    RuntimeSession,
    SessionRequest,
    batch_of,
    check_feeds,
    check_model_file,
    fill_batch,
    session_threads,
    still_open,
)
from t2t_deploy.types import INPUT_NAME, OUTPUT_NAME, QUANTIZED, Precision, Target, TensorSpec

_DEVICE = "CPU"
_F32, _BF16 = "f32", "bf16"
# Names of the CPU plugin's layers that multiply matrices, and of the types it computes them in.
PRODUCTS = frozenset({"FullyConnected", "MatMul", "Convolution"})
_INTEGERS = frozenset({"i8", "u8"})
_HALVES: Mapping[str, Precision] = {_BF16: Precision.BF16, "f16": Precision.FP16}
# Sizes that a free batch is compiled for: the request's, this one, and those that come often.
_PIECE = 16
_MOST_SIZES = 6
_LATEST_CALLS, _OFTEN = 8, 4
_CALL_PICTURES = 2
"""A call costs a small model about as much as this many pictures more."""
_first_process: int | None = None
"""Where the first session was opened: its threads hold locks that a fork can't free."""


@dataclass(frozen=True, slots=True)
class Layers:
    """How many layers of a compiled model compute in each type.

    every: of all layers. products: of those that multiply matrices on their own; attention may
    be fused into layers of another kind.
    """

    every: Mapping[str, int]
    products: Mapping[str, int]


class OpenVinoBackend(Backend):
    """OpenVINO's CPU plugin."""

    def why_not_in(self, precision: Precision) -> str | None:
        """As `Backend.why_not_in`, on this CPU."""
        if precision is Precision.FP16 or precision in QUANTIZED - {Precision.INT8}:
            return (
                f"its CPU kernels would compute {precision.value} in float32; export with "
                "precision fp32 or bf16"
            )
        if precision is Precision.BF16:
            # AVX-512 without bf16 emulates it, slowly, and is not listed
            able = require("openvino").Core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
            if "BF16" not in able:
                return (
                    "this CPU has no bf16 (avx512_bf16, amx_bf16 or avx_ne_convert; OpenVINO lists "
                    f"{', '.join(able)}); use an fp32 artifact"
                )
        return None

    def count_products(self, request: SessionRequest) -> ProductCounts | None:
        """As `Backend.count_products`, of the model that OpenVINO compiled for this CPU."""
        with OpenVinoSession(request) as session:
            products = session.layers.products
        integer = sum(count for kind, count in products.items() if kind in _INTEGERS)
        return ProductCounts(integer, sum(products.values()) - integer)

    def _missing(self, device: int | None) -> Iterator[Unavailable | None]:
        yield from super()._missing(device)
        if _first_process not in (None, os.getpid()):
            yield Unavailable(
                f"process {_first_process} used OpenVINO before it was forked into this one",
                "open it in the workers alone (no preload, or spawn)",
            )


class OpenVinoSession(RuntimeSession):
    """An ONNX file in OpenVINO on the CPU; calls of several threads take turns on its streams.

    A graph with bf16 tensors is computed as typed, with its float32 islands. A float32 graph is
    computed in float32 (by default OpenVINO would use bf16 where the CPU has it), or in bf16
    throughout if ``precision`` says so, and an 8-bit one around its products if ``base`` does.

    precision: of the graph, or to compute a float32 graph in; None is the graph's.
    A free batch is compiled for the request's size at once, since a known size makes T2T-ViT-7 5 %
    faster, and for up to four others that come often: four of the eight latest calls. Any other is
    computed in pieces of those sizes and of 16, the last one filled up. Nothing is compiled twice.
    Pictures get the same bits in all of them, which those of a model compiled with a free batch
    would not in int8.

    Raises ArtifactError where the file is missing or no valid model, BackendError where the CPU
    lacks the precision, or OpenVINO uses another.
    """

    def __init__(self, request: SessionRequest) -> None:
        ov, path = require("openvino"), request.path
        check_model_file(path)
        self.backend = request.backend
        global _first_process
        _first_process = _first_process or os.getpid()
        self._core = ov.Core()
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        """The streams on which no call computes."""
        for stream in range(request.streams):
            self._idle.put(stream)
        self._lock = threading.Lock()
        """Locked while the model is compiled or closed."""
        try:
            self._model = self._core.read_model(path)
        except RuntimeError as err:
            raise ArtifactError(
                f"OpenVINO refuses {path}: {_reason(err)}; export the model again"
            ) from err
        typed = _typed_in(self._model)
        asked = typed or request.precision
        for one in filter(None, (asked, request.base)):
            if (why_not := OPENVINO.why_not_in(one)) is not None:
                raise BackendError(f"OpenVINO cannot compute {path.name}: {why_not}")
        self._path, self._asked, self._base = path, asked, request.base
        # the hint only lowers: under f32 the graph's own bf16 stays
        lowered = Precision.BF16 in (asked, request.base) and typed is None
        self._options = {
            "INFERENCE_PRECISION_HINT": _BF16 if lowered else _F32,
            "PERFORMANCE_HINT": "LATENCY" if request.streams == 1 else "THROUGHPUT",
            "NUM_STREAMS": str(request.streams),
        }
        self._streams = request.streams
        threads = session_threads(request.threads)
        if threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = str(threads)
        if request.cache is not None:
            self._options["CACHE_DIR"] = str(request.cache)
        self.inputs = tuple(_spec(port, INPUT_NAME) for port in self._model.inputs)
        self.outputs = tuple(_spec(port, OUTPUT_NAME) for port in self._model.outputs)
        # other free dimensions stay so: OpenVINO then takes any shape by itself
        self._free = all(spec.shape[:1] == (None,) for spec in (*self.inputs, *self.outputs))
        self._requests: dict[int, list[Any]] = {}
        """By the size that they compute, one for each stream."""
        self._latest: deque[int] = deque(maxlen=_LATEST_CALLS)
        self.layers = self._compile(request.batch or 1)
        """Of the size compiled last."""

    def _compute(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_feeds(self.inputs, feeds)
        batch = batch_of(self.inputs, feeds) if self._free else None
        pieces, start = [], 0
        stream = self._idle.get()
        try:
            # kept until the call is done, if others close
            requests = self._requests_for(batch)
            if batch is None:
                return self._infer(requests[0][1][stream], feeds)
            for size, of_streams in requests:
                part = {name: array[start : start + size] for name, array in feeds.items()}
                part = {name: fill_batch(array, size) for name, array in part.items()}
                pieces.append(self._infer(of_streams[stream], part))
                start += size
        finally:
            self._idle.put(stream)
        return {name: np.concatenate([one[name] for one in pieces])[:batch] for name in pieces[0]}

    def _close(self) -> None:
        with self._lock:
            self._requests.clear()
            self._model = self._core = None

    def _requests_for(self, batch: int | None) -> list[tuple[int, list[Any]]]:
        """The sizes that a batch is computed in, with their requests; None is the graph's own."""
        with self._lock:
            still_open(self._model)
            sizes = tuple(self._requests) if batch is None else self._sizes(batch)
            for size in sizes:
                if size not in self._requests:
                    self.layers = self._compile(size)
            return [(size, self._requests[size]) for size in sizes]

    def _infer(self, request: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = [feeds[spec.name] for spec in self.inputs]
        results = request.infer(arrays, share_inputs=True)
        return {spec.name: results[index] for index, spec in enumerate(self.outputs)}

    def _sizes(self, batch: int) -> tuple[int, ...]:
        """The sizes to compute a batch in, which may have to be compiled first."""
        self._latest.append(batch)
        sizes = {*self._requests, _PIECE}
        if self._latest.count(batch) >= _OFTEN and len(sizes | {batch}) <= _MOST_SIZES:
            return (batch,)
        return pieces_of(batch, tuple(sorted(sizes)))

    def _compile(self, batch: int) -> Layers:
        """Compile for a batch (unused if the graph's is not free) and check the result."""
        if self._free:
            shapes = {index: [batch, *spec.shape[1:]] for index, spec in enumerate(self.inputs)}
            self._model.reshape(shapes)
        try:
            compiled = self._core.compile_model(self._model, _DEVICE, self._options)
        except RuntimeError as err:
            raise ArtifactError(
                f"OpenVINO does not compile {self._path}: {_reason(err)}; export the model with "
                "target openvino"
            ) from err
        devices = list(compiled.get_property("EXECUTION_DEVICES"))
        self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        layers = read_layers(compiled.get_runtime_model())
        check_computed(self._path.name, self._asked, layers, devices, self._base)
        self._requests[batch] = [compiled.create_infer_request() for _ in range(self._streams)]
        return layers


OPENVINO = OpenVinoBackend(
    name="openvino",
    about="OpenVINO, CPU",
    takes="onnx",
    module="openvino",
    open=OpenVinoSession,
    made_for=(Target.OPENVINO,),
    float32_in=(Precision.FP32, Precision.BF16),
    why_no_dynamic_ranges="it takes ranges at run time, and OpenVINO would compute it in float32",
)


@functools.lru_cache(maxsize=1024)
def pieces_of(batch: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The cheapest sizes that hold a batch together; the last may be filled up."""
    costs, firsts = [0], [0]
    for count in range(1, batch + 1):
        ways = ((costs[max(0, count - size)] + size + _CALL_PICTURES, size) for size in sizes)
        cost, first = min(ways)
        costs.append(cost)
        firsts.append(first)
    found = []
    while batch > 0:
        found.append(firsts[batch])
        batch -= firsts[batch]
    # what has to be filled up is less than the least of them
    return tuple(sorted(found, reverse=True))


def read_layers(runtime_model: Any) -> Layers:
    """The types that a compiled model's layers compute in, from its runtime model."""
    every: Counter[str] = Counter()
    products: Counter[str] = Counter()
    for layer in runtime_model.get_ops():
        info = layer.get_rt_info()
        kind, computes = (info[name].astype(str) for name in ("layerType", "runtimePrecision"))
        every[computes] += 1
        if kind in PRODUCTS:
            products[computes] += 1
    return Layers(dict(every), dict(products))


def check_computed(
    name: str,
    asked: Precision | None,
    layers: Layers,
    devices: list[str],
    base: Precision | None = None,
) -> None:
    """Raise BackendError where OpenVINO computes on another device, or in another precision.

    fp32 allows no layer of fewer bits. Of a bf16 graph most products must be bf16: those around a
    float32 island are not. An int8 graph must have products of integers, and layers in its base.
    """
    if devices != [_DEVICE]:
        raise BackendError(
            f"OpenVINO runs {name} on {', '.join(devices)}; expected {_DEVICE}: is another device "
            "forced by the environment?"
        )
    actual = ", ".join(f"{count} in {kind}" for kind, count in layers.products.items()) or "none"
    if asked is None:
        return
    if asked is Precision.FP32:
        lower = sorted(kind for kind in layers.every if kind in (*_HALVES, *_INTEGERS))
        if lower:
            raise BackendError(
                f"OpenVINO computes layers of {name} in {', '.join(lower)}; expected fp32 "
                f"throughout (of its products {actual}): use backend ort-cpu"
            )
        return
    kinds = {_BF16} if asked is Precision.BF16 else _INTEGERS
    right = sum(count for kind, count in layers.products.items() if kind in kinds)
    needed = sum(layers.products.values()) / 2 if asked is Precision.BF16 else 0
    if right <= needed:
        raise BackendError(
            f"OpenVINO computes {name} in another precision than {asked.value} (of its products "
            f"{actual}); use backend ort-cpu, or an fp32 artifact"
        )
    halves = layers.every.get(_BF16, 0)
    if asked in QUANTIZED and (halves > 0) != (base is Precision.BF16):
        raise BackendError(
            f"OpenVINO computes {halves} layers of {name} in bf16; its base is "
            f"{(base or Precision.FP32).value}: quantise it again with --base, or use ort-cpu"
        )


def _typed_in(model: Any) -> Precision | None:
    """The 16-bit type of stored weights, if any: the graph then types what it computes."""
    stored = {
        op.get_element_type().get_type_name()
        for op in model.get_ops()
        if op.get_type_name() == "Constant"
    }
    return next((kind for name, kind in _HALVES.items() if name in stored), None)


def _spec(port: Any, usual: str) -> TensorSpec:
    names = port.get_names()
    shape = tuple(dim.get_length() if dim.is_static else None for dim in port.get_partial_shape())
    dtype = np.dtype(port.get_element_type().to_dtype()).name
    return TensorSpec(usual if usual in names else port.get_any_name(), dtype, shape)


def _reason(err: RuntimeError) -> str:
    """The last line with text: those before it are positions in OpenVINO's source."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[-1] if lines else type(err).__name__
