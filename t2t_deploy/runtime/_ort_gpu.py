"""ONNX Runtime sessions on a GPU alone, through CUDA or TensorRT."""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t2t_deploy._optional import require
from t2t_deploy.engine import Unavailable
from t2t_deploy.errors import BackendError, first_few
from t2t_deploy.graph import read_onnx
from t2t_deploy.runtime._ort import new_options, raise_refusal, tensor_spec
from t2t_deploy.runtime._ort_replay import REPLAYABLE, Replays, run_bound
from t2t_deploy.runtime._session import (
    Backend,
    RuntimeSession,
    SessionRequest,
    TimedRun,
    check_feeds,
    check_model_file,
    still_open,
)
from t2t_deploy.types import Precision, Target

if TYPE_CHECKING:
    import onnx

# a session option that records where nodes run
RECORD_PLACEMENT = ("session.record_ep_graph_assignment_info", "1")
_SHAPE_SOURCES = ("Shape", "Size", "Constant")
_GRAPHS_REFUSED = "cannot use the graph capture feature"
_FALLBACK_REFUSED = "fallback to CPU EP has been explicitly disabled"


@dataclass(frozen=True)
class OrtGpuBackend(Backend):
    """One execution provider of ONNX Runtime.

    provider: its name there. library: the stem of its library. install: how to install it.
    """

    provider: str = ""
    library: str = ""
    install: str = ""

    @property
    def extra(self) -> str:
        """As `Backend.extra`: its wheel is not the CPU's."""
        return "gpu"

    def options(self, request: SessionRequest) -> dict[str, str]:
        """Options of the execution provider, as strings."""
        options = {"device_id": str(request.device or 0)}
        if self is ORT_CUDA:
            # else float32 products round to TensorFloat-32: an error of 1e-3, allowed are 1e-5;
            # and a float16 sum with the norm behind it takes its moments in float16
            return options | {"use_tf32": "0", "enable_skip_layer_norm_strict_mode": "1"}
        if request.precision in (Precision.FP16, Precision.BF16):
            options[f"trt_{request.precision.value}_enable"] = "1"
        if request.cache is not None:
            for kind in ("engine", "timing"):
                options[f"trt_{kind}_cache_enable"] = "1"
                options[f"trt_{kind}_cache_path"] = str(request.cache)
        return options

    def why_no_provider(self) -> Unavailable | None:
        """Why the provider is unavailable: another wheel, or a missing library.

        ONNX Runtime reports the latter in its log only, and lists providers that do not load.
        """
        ort = require(self.module)
        listed = ort.get_available_providers()
        if self.provider not in listed:
            return Unavailable(
                f"onnxruntime {ort.__version__} has no {self.provider} (it has "
                f"{', '.join(listed)})",
                "pip uninstall onnxruntime, then pip install 't2t-deploy[gpu]'",
            )
        if hasattr(ort, "preload_dlls"):  # 1.21 and later: from the wheels beside it
            # it prints missing libraries on stdout; the relevant ones are reported below
            with contextlib.redirect_stdout(io.StringIO()):
                ort.preload_dlls()
        folder = Path(str(ort.__file__)).parent / "capi"
        try:
            for stem in ("onnxruntime_providers_shared", self.library):
                name = f"{stem}.dll" if sys.platform == "win32" else f"lib{stem}.so"
                ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
        except OSError as err:
            return Unavailable(f"{self.provider} does not load ({err})", self.install)
        return None

    def _missing(self, device: int | None) -> Iterator[Unavailable | None]:
        yield from super()._missing(device)
        yield self.why_no_provider()


class OrtGpuSession(RuntimeSession):
    """An ONNX file in ONNX Runtime on one GPU, without nodes on the CPU.

    precision: of the graph; lets TensorRT compute in 16 bit.
    cuda_graph: replay each shape as one graph, recorded after its first call; calls then take
        turns. Not for TensorRT's provider.
    threads: intra-op threads on the host.

    Raises ArtifactError where the file is missing or no valid model, BackendError where the
    provider is unavailable or would leave nodes to the CPU, MissingDependencyError.
    """

    def __init__(self, request: SessionRequest) -> None:
        backend = ORT_CUDA if request.backend == ORT_CUDA.name else ORT_TENSORRT
        ort = require("onnxruntime")
        path = request.path
        self.backend, self._provider = request.backend, backend.provider
        check_model_file(path)
        unavailable = backend.why_no_provider()
        if unavailable is not None:
            raise BackendError(str(unavailable))
        options, settings = session_options(ort, request.threads), backend.options(request)
        if request.cache is not None:
            request.cache.mkdir(parents=True, exist_ok=True)
        replayed = request.cuda_graph and backend.cuda_graphs
        refusal: str | None = None
        try:
            session = self._opened(
                ort, path, options, {**settings, **REPLAYABLE} if replayed else settings
            )
        except BackendError as err:
            if not replayed or _GRAPHS_REFUSED not in str(err):
                raise
            # the same kernels run one by one: slower, but correct
            replayed, refusal = False, str(err)
            session = self._opened(ort, path, options, settings)
        actual = session.get_providers()
        if actual[:1] != [self._provider]:
            raise BackendError(
                f"ONNX Runtime runs {path.name} on {', '.join(actual)}, expected "
                f"{self._provider}; its log on stderr says why"
            )
        self.nodes = placed_nodes(session)
        """Each node's provider; None where this release of ONNX Runtime does not record it."""
        if self.nodes is not None:
            check_placement(self.nodes, self._provider, path)
        self.inputs = tuple(tensor_spec(node) for node in session.get_inputs())
        self.outputs = tuple(tensor_spec(node) for node in session.get_outputs())
        self._ort, self._device, self._session = ort, request.device or 0, session
        self._refusal = refusal
        self._replays = (
            Replays(ort, session, self.inputs, self.outputs, self._device) if replayed else None
        )

    def _opened(self, ort: Any, path: Path, options: Any, settings: Mapping[str, str]) -> Any:
        try:
            # without enable_fallback=0 the Python layer retries on other providers by itself
            return ort.InferenceSession(
                str(path), options, providers=[(self._provider, settings)], enable_fallback=0
            )
        except Exception as err:
            text = str(err)
            if _FALLBACK_REFUSED in text:
                raise BackendError(
                    f"{self._provider} would leave nodes of {path.name} to the CPU: export "
                    "with target tensorrt, or see ONNX Runtime's log on stderr"
                ) from err
            # of the Python layer, before the session exists
            if type(err) is RuntimeError or _GRAPHS_REFUSED in text:
                reason = text.strip().splitlines()[-1]
                raise BackendError(f"{self._provider} does not start: {reason}") from err
            raise_refusal(err, path)

    @property
    def captured_batches(self) -> tuple[int, ...]:
        """Batch sizes with a recorded graph, ascending."""
        recorded = () if self._replays is None else self._replays.recorded
        return tuple(sorted({shapes[0][0] for shapes in recorded}))

    @property
    def graph_refusal(self) -> str | None:
        """Why calls are not replayed as graphs, if that was tried."""
        return self._refusal if self._replays is None else self._replays.refusal

    def _compute(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.timed_run(feeds).outputs

    def timed_run(self, feeds: Mapping[str, np.ndarray]) -> TimedRun:
        """As `run`, with times by the host's clock, which waits for each part."""
        self.check_process()
        check_feeds(self.inputs, feeds)
        session, replays = still_open(self._session), self._replays
        if replays is not None:
            return replays.run(feeds)
        return run_bound(self._ort, session, feeds, self.outputs, self._device)

    def _close(self) -> None:
        self._session = self._replays = None


ORT_CUDA = OrtGpuBackend(
    name="ort-cuda",
    about="ONNX Runtime, CUDA",
    takes="onnx",
    module="onnxruntime",
    open=OrtGpuSession,
    needs_gpu=True,
    cuda_graphs=True,
    made_for=(Target.CUDA,),
    provider="CUDAExecutionProvider",
    library="onnxruntime_providers_cuda",
    install="pip install 'onnxruntime-gpu[cuda,cudnn]'",
)
ORT_TENSORRT = replace(
    ORT_CUDA,
    name="ort-tensorrt",
    about="ONNX Runtime, TensorRT",
    cuda_graphs=False,
    made_for=(),
    provider="TensorrtExecutionProvider",
    library="onnxruntime_providers_tensorrt",
    install="pip install 'onnxruntime-gpu[cuda,cudnn]' tensorrt, and put TensorRT's libraries on "
    "LD_LIBRARY_PATH",
)


def session_options(ort: Any, threads: int | None) -> Any:
    """Options with which a graph runs on the requested provider or not at all."""
    options = new_options(ort, threads)
    # else sums over a batch of one change their order in each call: other bits, 1e-3 in fp16
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry(*RECORD_PLACEMENT)
    return options


@dataclass(frozen=True, slots=True)
class PlacedNode:
    """A node of the graph as it was before fusion, and its execution provider."""

    provider: str
    name: str
    op: str


def placed_nodes(session: Any) -> tuple[PlacedNode, ...] | None:
    """The session's nodes; None where this release of ONNX Runtime does not record them.

    session: opened with `RECORD_PLACEMENT`.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    return tuple(
        PlacedNode(group.ep_name, node.name, node.op_type)
        for group in session.get_provider_graph_assignment_info()
        for node in group.get_nodes()
    )


def check_placement(nodes: Sequence[PlacedNode], provider: str, path: Path) -> None:
    """Raise BackendError where a node that computes is not on ``provider``.

    Nodes that compute sizes do not count: a GPU provider leaves them on the host on purpose.
    """
    elsewhere = [node for node in nodes if node.provider != provider]
    if not elsewhere:
        return
    sizes = shape_work(read_onnx(path).graph.node)
    wrong = [node for node in elsewhere if node.name not in sizes]
    if wrong:
        shown = first_few([f"{node.op} {node.name!r}" for node in wrong])
        raise BackendError(
            f"{len(wrong)} of {len(nodes)} nodes of {path.name} are not on {provider}: "
            f"{shown} on {wrong[0].provider}; export with target tensorrt, or choose "
            "another backend"
        )


def shape_work(nodes: Iterable[onnx.NodeProto]) -> frozenset[str]:
    """Names of the nodes that compute sizes, from shapes and constants alone.

    nodes: sorted, as ONNX requires.
    """
    sizes: set[str] = set()
    values: set[str] = set()
    names = set()
    for node in nodes:
        inputs = [name for name in node.input if name]
        from_sizes = inputs and any(name in sizes for name in inputs)
        if node.op_type in _SHAPE_SOURCES or (
            from_sizes and not any(name in values for name in inputs)
        ):
            sizes.update(node.output)
            names.add(node.name)
        else:
            values.update(node.output)
    return frozenset(names)
