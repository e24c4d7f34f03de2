"""ONNX Runtime sessions on a GPU, through CUDA or TensorRT: there or nowhere."""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t2t_deploy._optional import require
from t2t_deploy.engine import Unavailable
from t2t_deploy.errors import ArtifactError, BackendError
from t2t_deploy.graph import check_onnx_file
from t2t_deploy.runtime._ort import raise_refusal, tensor_spec
from t2t_deploy.runtime._ort_placement import (
    RECORD_PLACEMENT,
    Placement,
    check_placement,
    read_placement,
)
from t2t_deploy.runtime._ort_replay import REPLAYABLE, Replays, run_bound
from t2t_deploy.runtime._session import ClosingSession, TimedRun, check_feeds
from t2t_deploy.types import Precision

_GRAPHS_REFUSED = "cannot use the graph capture feature"
_FALLBACK_REFUSED = "fallback to CPU EP has been explicitly disabled"


@dataclass(frozen=True, slots=True)
class GpuProvider:
    """An execution provider: its name in ONNX Runtime, the stem of its library, what it needs."""

    name: str
    library: str
    install: str


PROVIDERS: Mapping[str, GpuProvider] = {
    "ort-cuda": GpuProvider(
        "CUDAExecutionProvider",
        "onnxruntime_providers_cuda",
        "pip install 'onnxruntime-gpu[cuda,cudnn]'",
    ),
    "ort-tensorrt": GpuProvider(
        "TensorrtExecutionProvider",
        "onnxruntime_providers_tensorrt",
        "pip install 'onnxruntime-gpu[cuda,cudnn]' tensorrt, and put TensorRT's libraries on "
        "LD_LIBRARY_PATH",
    ),
}


class OrtGpuSession(ClosingSession):
    """An ONNX file in ONNX Runtime on one GPU; no node of it runs on the CPU.

    backend: ``ort-cuda`` or ``ort-tensorrt``. device: ordinal of the CUDA device.
    precision: of the graph; TensorRT must be told that it may compute in 16 bit.
    cache: folder for the engines that TensorRT builds of it; None keeps none.
    cuda_graph: replay each shape as one graph, recorded after its first call; calls then take
        turns. For ``ort-cuda``; the other launches what TensorRT made of the file.
    threads: intra-op threads of what the host does; None leaves one per core.

    Raises ArtifactError where the file is missing or no valid model, BackendError where the
    provider cannot be had or would leave nodes to the CPU, MissingDependencyError.
    """

    def __init__(
        self,
        path: Path,
        *,
        backend: str,
        device: int = 0,
        precision: Precision | None = None,
        cache: Path | None = None,
        threads: int | None = None,
        cuda_graph: bool = True,
    ) -> None:
        ort = require("onnxruntime")
        self.backend = backend
        self._provider = PROVIDERS[backend]
        if not path.is_file():
            raise ArtifactError(f"there is no file {path}; export the model first")
        check_onnx_file(path)
        unavailable = why_no_provider(ort, backend)
        if unavailable is not None:
            raise BackendError(str(unavailable))
        options = session_options(ort, threads)
        settings = provider_options(backend, device, precision, cache)
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
        replayed = cuda_graph and backend == "ort-cuda"
        refusal: str | None = None
        try:
            session = self._opened(
                ort, path, options, {**settings, **REPLAYABLE} if replayed else settings
            )
        except BackendError as err:
            if not replayed or _GRAPHS_REFUSED not in str(err):
                raise
            # the same kernels run one by one: slower, and said, but nothing is wrong with them
            replayed, refusal = False, str(err)
            session = self._opened(ort, path, options, settings)
        found = session.get_providers()
        if found[:1] != [self._provider.name]:
            raise BackendError(
                f"ONNX Runtime runs {path.name} on {', '.join(found)}, expected "
                f"{self._provider.name}; its log on stderr says why"
            )
        self.placement: Placement | None = read_placement(session)
        """Where each node is; None where this release of ONNX Runtime cannot tell."""
        if self.placement is not None:
            check_placement(self.placement, self._provider.name, path)
        self.inputs = tuple(tensor_spec(node) for node in session.get_inputs())
        self.outputs = tuple(tensor_spec(node) for node in session.get_outputs())
        self._ort, self._device = ort, device
        self._session = session
        self._refusal = refusal
        self._replays = (
            Replays(ort, session, self.inputs, self.outputs, device) if replayed else None
        )

    def _opened(self, ort: Any, path: Path, options: Any, settings: Mapping[str, str]) -> Any:
        try:
            # without enable_fallback=0 the Python layer retries on other providers by itself
            return ort.InferenceSession(
                str(path), options, providers=[(self._provider.name, settings)], enable_fallback=0
            )
        except Exception as err:
            text = str(err)
            if _FALLBACK_REFUSED in text:
                raise BackendError(
                    f"{self._provider.name} would leave nodes of {path.name} to the CPU, which is "
                    "ruled out: export with --target tensorrt, or see ONNX Runtime's log on stderr"
                ) from err
            # of the Python layer, before a session is there
            if type(err) is RuntimeError or _GRAPHS_REFUSED in text:
                reason = text.strip().splitlines()[-1]
                raise BackendError(f"{self._provider.name} does not start: {reason}") from err
            raise_refusal(err, path)

    @property
    def captured_batches(self) -> tuple[int, ...]:
        """Batch sizes that have been recorded as a graph, ascending."""
        recorded = () if self._replays is None else self._replays.recorded
        return tuple(sorted({shapes[0][0] for shapes in recorded}))

    @property
    def graph_refusal(self) -> str | None:
        """Why calls are not replayed as graphs, where that was tried."""
        return self._refusal if self._replays is None else self._replays.refusal

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs. Raises InputError, or BackendError on a closed session."""
        return self.timed_run(feeds).outputs

    def timed_run(self, feeds: Mapping[str, np.ndarray]) -> TimedRun:
        """As `run`, with times by the host's clock: each part is waited for."""
        check_feeds(self.inputs, feeds)
        session, replays = self._session, self._replays
        if session is None:
            raise BackendError("the session is closed; open a new one")
        if replays is not None:
            return replays.run(feeds)
        return run_bound(self._ort, session, feeds, self.outputs, self._device)

    def close(self) -> None:
        """Free the model."""
        self._session = self._replays = None


def session_options(ort: Any, threads: int | None) -> Any:
    """Options under which a graph runs on the asked provider or not at all."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # else sums over a batch of one add up in another order in each call: other bits, 1e-3 in fp16
    options.use_deterministic_compute = True
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry(*RECORD_PLACEMENT)
    return options


def provider_options(
    backend: str, device: int, precision: Precision | None, cache: Path | None
) -> dict[str, str]:
    """Options of the execution provider, as strings."""
    options = {"device_id": str(device)}
    if backend == "ort-cuda":
        # else products of float32 are rounded to TensorFloat-32: 1e-3 of error for 1e-5 allowed
        options["use_tf32"] = "0"
        return options
    if precision is Precision.FP16:
        options["trt_fp16_enable"] = "1"
    if precision is Precision.BF16:
        options["trt_bf16_enable"] = "1"
    if cache is not None:
        for kind in ("engine", "timing"):
            options[f"trt_{kind}_cache_enable"] = "1"
            options[f"trt_{kind}_cache_path"] = str(cache)
    return options


def why_no_provider(ort: Any, backend: str) -> Unavailable | None:
    """What keeps a backend's provider from being had: another wheel, or a library it needs.

    ONNX Runtime itself says the latter in its log only, and lists providers that do not load.
    """
    provider = PROVIDERS[backend]
    listed = ort.get_available_providers()
    if provider.name not in listed:
        return Unavailable(
            f"onnxruntime {ort.__version__} has no {provider.name} (it has {', '.join(listed)})",
            "pip uninstall onnxruntime, then pip install 't2t-deploy[gpu]'",
        )
    if hasattr(ort, "preload_dlls"):  # 1.21 and later: from the wheels beside it
        # it prints on stdout all that it does not find; what matters is told below
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    folder = Path(ort.__file__).parent / "capi"
    try:
        for stem in ("onnxruntime_providers_shared", provider.library):
            name = f"{stem}.dll" if sys.platform == "win32" else f"lib{stem}.so"
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    except OSError as err:
        return Unavailable(f"{provider.name} does not load ({err})", provider.install)
    return None
