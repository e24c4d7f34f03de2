"""The runtimes by name: what each takes, whether it can run here, how to open it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from t2t_deploy._optional import is_installed
from t2t_deploy.errors import BackendError, UsageError
from t2t_deploy.runtime._engine_device import device_capability
from t2t_deploy.runtime._session import Session, SessionRequest


@dataclass(frozen=True, slots=True)
class Backend:
    """A runtime: its command-line name and the kind of artifact it runs."""

    name: str
    takes: str
    """weights, onnx or engine"""
    about: str


BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("eager", "weights", "the reference in eager PyTorch"),
        Backend("compile", "weights", "the reference under torch.compile"),
        Backend("ort-cpu", "onnx", "ONNX Runtime, CPU"),
        Backend("ort-cuda", "onnx", "ONNX Runtime, CUDA"),
        Backend("ort-tensorrt", "onnx", "ONNX Runtime, TensorRT"),
        Backend("openvino", "onnx", "OpenVINO, CPU"),
        Backend("tensorrt", "engine", "TensorRT"),
        Backend("tensorrt-rtx", "engine", "TensorRT for RTX"),
    )
}
_NEEDS = {"eager": "torch", "ort-cpu": "onnxruntime"}
_NEED_CUDA = frozenset({"ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx"})


def why_not_runnable(name: str) -> str | None:
    """None where the backend can run here, else the reason in one line.

    Raises UsageError for an unknown name.
    """
    if name not in BACKENDS:
        raise UsageError(f"there is no backend {name!r}; known: {', '.join(BACKENDS)}")
    if name in _NEED_CUDA and device_capability() is None:
        return "no CUDA device"
    if name not in _NEEDS:
        return "not part of this version of t2t-deploy"
    module = _NEEDS[name]
    return None if is_installed(module) else f"{module} is not installed"


def open_session(request: SessionRequest) -> Session:
    """Open what the request asks for.

    Raises BackendError where the runtime cannot run here, ArtifactError for a bad file.
    """
    reason = why_not_runnable(request.backend)
    if reason is not None:
        raise BackendError(f"backend {request.backend} cannot run here: {reason}")
    if request.backend == "eager":
        from t2t_deploy.runtime._eager import EagerSession

        if request.config is None:
            raise BackendError("an eager session needs the model's dimensions: pass a config")
        return EagerSession(request.path, request.config, threads=request.threads)
    from t2t_deploy.runtime._ort import OrtSession

    return OrtSession(request.path, threads=request.threads)


def available_threads() -> int:
    """Cores this process may use: the thread count every backend is given by default."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
