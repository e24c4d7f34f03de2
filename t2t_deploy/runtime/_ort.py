"""ONNX Runtime sessions on the CPU."""

from __future__ import annotations

import queue
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from t2t_deploy._optional import require
from t2t_deploy._processor import read_processor
from t2t_deploy.errors import ArtifactError, BackendError
from t2t_deploy.graph import mappable_model
from t2t_deploy.runtime._session import (
    Backend,
    ProductCounts,
    RuntimeSession,
    SessionRequest,
    check_feeds,
    check_model_file,
    session_threads,
    still_open,
)
from t2t_deploy.types import Precision, Target, TensorSpec

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}
_CPU = "CPUExecutionProvider"
_EXACT_PRODUCTS = "session.x64quantprecision"
_FLOAT_ACTIVATIONS = "session.qdq_matmulnbits_accuracy_level"
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
_INTEGER_PRODUCTS = (
    *("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm"),
    *("ConvInteger", "QLinearConv", "QAttention"),
)
_FLOAT_PRODUCTS = (
    *("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv", "MatMulNBits"),
    *("Attention", "MultiHeadAttention"),
)
_FIRST_WITH_FP8 = (1, 32)


class OrtCpuBackend(Backend):
    """ONNX Runtime's own kernels."""

    def why_not_in(self, precision: Precision) -> str | None:
        """As `Backend.why_not_in`."""
        if precision is Precision.BF16:
            return "ONNX Runtime's CPU kernels have no bf16 matrix product"
        if precision.codes is Precision.FP8:
            version = str(require("onnxruntime").__version__)
            if tuple(int(part) for part in version.split(".")[:2]) < _FIRST_WITH_FP8:
                return (
                    f"ONNX Runtime {version} refuses FP8 graphs; expected 1.32 or newer: pip "
                    "install -U onnxruntime (Python 3.11 or newer)"
                )
        return None

    def count_products(self, request: SessionRequest) -> ProductCounts | None:
        """As `Backend.count_products`, from the graph that ONNX Runtime optimised for this CPU."""
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            optimised = Path(folder) / "optimised.onnx"
            _opened(request, optimised)
            found = Counter(
                node.op_type for node in onnx.load(optimised, load_external_data=False).graph.node
            )
        integer = sum(found[name] for name in _INTEGER_PRODUCTS)
        return ProductCounts(integer, sum(found[name] for name in _FLOAT_PRODUCTS))


class OrtSession(RuntimeSession):
    """An ONNX file in ONNX Runtime, on the CPU and nowhere else.

    Weights are mapped from the file, which may be replaced while the session is open but not
    changed in place. Raises ArtifactError where the file is missing or no valid model.

    In a forked process a session of one thread goes on, its weights shared with the parent's. One
    of several threads is opened again at its first call there, as is one that was computing during
    the fork: who holds its locks does not exist there. `run` raises ArtifactError where the file
    is another by then.
    """

    _session: Any = None  # until it is open

    def __init__(self, request: SessionRequest) -> None:
        request = replace(request, threads=session_threads(request.threads))
        self._session, self._file = _opened(request)
        self._request = replace(request, path=request.path.absolute())
        self._reopens = False
        self._opening = threading.Lock()
        self._calls: list[None] = []
        """One for each call under way."""
        self.backend = request.backend
        self.inputs = tuple(tensor_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(tensor_spec(node) for node in self._session.get_outputs())

    def _compute(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_feeds(self.inputs, feeds)
        self._calls.append(None)
        try:
            if self._reopens:
                self._open_again()
            session = still_open(self._session)  # kept until the call is done, if others close
            names = [spec.name for spec in self.outputs]
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))
        finally:
            self._calls.pop()

    def _close(self) -> None:
        with self._opening:
            self._session, self._reopens = None, False

    def _goes_on(self) -> bool:
        if self._session is not None and (self._calls or self._request.threads != 1):
            self._session, self._reopens = None, True
        self._opening, self._calls = threading.Lock(), []
        return True

    def _open_again(self) -> None:
        with self._opening:
            if not self._reopens:
                return
            session, file = _opened(self._request)
            if file != self._file:
                raise ArtifactError(
                    f"{self._request.path} was replaced after it was opened in process "
                    f"{self._process}: open it in each worker"
                )
            self._session, self._reopens = session, False


class OrtStreams(RuntimeSession):
    """A session for each stream, with its share of the threads; a call takes one that is free.

    Callers of one session would share its pool of threads, and wait for each other. A session of
    one thread has no pool: its callers do not, and it keeps the weights once, so `_open` takes it.
    Raises as `OrtSession`, and refuses calls in a forked process.
    """

    def __init__(self, request: SessionRequest) -> None:
        share = replace(request, threads=request.threads_each, streams=1)
        self.sessions = [OrtSession(share) for _ in range(request.streams)]
        self._idle: queue.SimpleQueue[OrtSession] = queue.SimpleQueue()
        for session in self.sessions:
            self._idle.put(session)
        self.backend, self.inputs, self.outputs = session.backend, session.inputs, session.outputs

    def _compute(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = self._idle.get()
        try:
            return session.run(feeds)
        finally:
            self._idle.put(session)

    def _close(self) -> None:
        for session in self.sessions:
            session.close()


def _open(request: SessionRequest) -> OrtSession | OrtStreams:
    if request.streams > 1 and request.threads_each != 1:
        return OrtStreams(request)
    return OrtSession(replace(request, threads=request.threads_each))


def _opened(request: SessionRequest, optimised: Path | None = None) -> tuple[Any, tuple[int, ...]]:
    """A session of ONNX Runtime, and which file it has. Raises as `OrtSession`.

    optimised: a file for the graph that it runs.
    """
    ort, path = require("onnxruntime"), request.path
    check_model_file(path)
    options = new_options(ort, request.threads)
    # ONNX Runtime turns signed operands into signed weights by unsigned activations, which x86
    # saturates without VNNI: this selects exact unsigned products, which VNNI does not multiply.
    exact = "0" if read_processor().has_vnni else "1"
    options.add_session_config_entry(_EXACT_PRODUCTS, exact)
    # else 1.32 rounds the activations of products with 8-bit weights to 8 bits too
    options.add_session_config_entry(_FLOAT_ACTIVATIONS, "1")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    before = _identity(path)
    model = mappable_model(path)
    if model.mapped_bytes:  # the weights are left in the file
        options.add_session_config_entry(_EXTERNAL_FOLDER, str(path.absolute().parent))
    source = model.graph if model.mapped_bytes else str(path)
    try:
        session = ort.InferenceSession(source, options, providers=[_CPU])
    except Exception as err:
        raise_refusal(err, path)
    if _identity(path) != before:
        raise ArtifactError(f"{path} was replaced while it was being loaded: open it again")
    if session.get_providers() != [_CPU]:
        raise BackendError(
            f"ONNX Runtime runs on {session.get_providers()}, expected {_CPU}; is another "
            "provider forced by the environment?"
        )
    return session, before


ORT_CPU = OrtCpuBackend(
    name="ort-cpu",
    about="ONNX Runtime, CPU",
    takes="onnx",
    module="onnxruntime",
    open=_open,
    made_for=(Target.CPU, Target.PORTABLE, Target.NCNN),  # it checks what ncnn is to run
)


def new_options(ort: Any, threads: int | None) -> Any:
    """Options of a session; ``threads`` are intra-op, None as in `SessionRequest`."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    threads = session_threads(threads)
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _identity(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def raise_refusal(err: Exception, path: Path) -> NoReturn:
    """Raise why a session did not open: ONNX Runtime's own errors in one line, others as is."""
    # they share no public base class
    if not type(err).__module__.startswith("onnxruntime"):
        raise err
    text = str(err).strip().splitlines()[0]
    raise ArtifactError(f"ONNX Runtime refuses {path}: {text}; export the model again") from err


def tensor_spec(node: Any) -> TensorSpec:
    """A session's input or output. Raises ArtifactError for a type unknown to numpy."""
    shape = tuple(dim if isinstance(dim, int) else None for dim in node.shape)
    if node.type not in _DTYPES:
        raise ArtifactError(
            f"tensor {node.name!r} is {node.type}; expected one of {', '.join(_DTYPES)}"
        )
    return TensorSpec(node.name, _DTYPES[node.type], shape)
