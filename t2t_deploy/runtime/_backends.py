"""The runtimes by name: what each takes, whether it can run here, how to open it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from t2t_deploy._optional import require
from t2t_deploy.errors import BackendError, UsageError
from t2t_deploy.runtime._requirements import (
    ORT_GPU_BACKENDS,
    TENSORRT_MODULES,
    TORCH_BACKENDS,
    run_unavailable,
)
from t2t_deploy.runtime._session import Session, SessionRequest
from t2t_deploy.types import Precision

_FIRST_WITH_FP8 = (1, 32)


@dataclass(frozen=True, slots=True)
class Backend:
    """A runtime: its command-line name and the kind of artifact it runs."""

    name: str
    takes: str
    """weights, onnx or engine"""
    about: str
    cuda_graphs: bool = False
    """whether `SessionRequest.cuda_graph` changes anything"""


BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("eager", "weights", "the reference in eager PyTorch"),
        Backend("compile", "weights", "the reference under torch.compile"),
        Backend("ort-cpu", "onnx", "ONNX Runtime, CPU"),
        Backend("ort-cuda", "onnx", "ONNX Runtime, CUDA", cuda_graphs=True),
        Backend("ort-tensorrt", "onnx", "ONNX Runtime, TensorRT"),
        Backend("openvino", "onnx", "OpenVINO, CPU"),
        Backend("tensorrt", "engine", "TensorRT", cuda_graphs=True),
        Backend("tensorrt-rtx", "engine", "TensorRT for RTX", cuda_graphs=True),
    )
}


def why_not_runnable(name: str, device: int | None = None) -> str | None:
    """None where the backend can run here, else what is missing and the next step, in one line.

    device: ordinal of the CUDA device asked for; None as in `SessionRequest`.
    Raises UsageError for an unknown name.
    """
    if name not in BACKENDS:
        raise UsageError(f"there is no backend {name!r}; known: {', '.join(BACKENDS)}")
    unavailable = run_unavailable(name, device)
    return None if unavailable is None else str(unavailable)


def why_not_in(name: str, precision: Precision) -> str | None:
    """None where a runnable backend of ONNX files computes in that precision, else why not."""
    if name == "ort-cpu" and precision is Precision.BF16:
        return "ONNX Runtime's CPU kernels have no bf16 matrix product"
    if name == "ort-cpu" and precision.codes is Precision.FP8:
        version = str(require("onnxruntime").__version__)
        if tuple(int(part) for part in version.split(".")[:2]) < _FIRST_WITH_FP8:
            return (
                f"ONNX Runtime {version} refuses FP8 graphs; expected 1.32 or newer: pip install "
                "-U onnxruntime (Python 3.11 or newer)"
            )
    if name == "openvino":
        from t2t_deploy.runtime import _openvino

        return _openvino.why_not_in(precision)
    return None


def open_session(request: SessionRequest) -> Session:
    """Open what the request asks for.

    Raises BackendError where the runtime cannot run here, ArtifactError for a bad file.
    """
    reason = why_not_runnable(request.backend, request.device)
    if reason is not None:
        raise BackendError(f"backend {request.backend} cannot run here: {reason}")
    if request.backend in TORCH_BACKENDS:
        return _torch_session(request)
    if request.backend in TENSORRT_MODULES:
        from t2t_deploy.runtime._trt_session import TensorRTSession

        return TensorRTSession(
            require(TENSORRT_MODULES[request.backend]),
            request.path,
            backend=request.backend,
            sha256=request.sha256,
            device=request.device or 0,
            cache=request.cache,
            cuda_graph=request.cuda_graph,
        )
    if request.backend in ORT_GPU_BACKENDS:
        from t2t_deploy.runtime._ort_gpu import OrtGpuSession

        return OrtGpuSession(
            request.path,
            backend=request.backend,
            device=request.device or 0,
            precision=request.precision,
            cache=request.cache,
            threads=request.threads,
            cuda_graph=request.cuda_graph,
        )
    if request.backend == "openvino":
        from t2t_deploy.runtime._openvino import OpenVinoSession

        return OpenVinoSession(
            request.path,
            precision=request.precision,
            threads=request.threads,
            cache=request.cache,
        )
    from t2t_deploy.runtime._ort import OrtSession

    return OrtSession(request.path, threads=request.threads)


def _torch_session(request: SessionRequest) -> Session:
    from t2t_deploy.runtime._eager import EagerSession

    if request.config is None:
        raise BackendError("an eager session needs the model's dimensions: pass a config")
    return EagerSession(
        request.path,
        request.config,
        threads=request.threads,
        device=request.device,
        autocast=request.precision,
        compiled=request.backend == "compile",
        cache=request.cache,
    )


def available_threads() -> int:
    """Cores this process may use: the thread count every backend is given by default."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
