"""The runtimes by name."""

from __future__ import annotations

from collections.abc import Mapping

from t2t_deploy._limits import read_limits
from t2t_deploy.errors import UnavailableError, UsageError
from t2t_deploy.runtime._eager import COMPILE, EAGER
from t2t_deploy.runtime._openvino import OPENVINO
from t2t_deploy.runtime._ort import ORT_CPU
from t2t_deploy.runtime._ort_gpu import ORT_CUDA, ORT_TENSORRT
from t2t_deploy.runtime._session import Backend, Session, SessionRequest
from t2t_deploy.runtime._trt_session import TENSORRT, TENSORRT_RTX
from t2t_deploy.types import Precision, Target

BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        EAGER,
        COMPILE,
        ORT_CPU,
        ORT_CUDA,
        ORT_TENSORRT,
        OPENVINO,
        TENSORRT,
        TENSORRT_RTX,
    )
}
REFERENCE_BACKEND = EAGER.name
DEFAULT_BACKEND = ORT_CPU.name
CPU_BACKENDS = tuple(backend.name for backend in BACKENDS.values() if backend.on_cpu)
"""The runtimes of ONNX files that need no device; one of them checks an artifact."""


def backend_for(target: Target) -> str:
    """The usual runtime of graphs for a target."""
    return next(backend.name for backend in BACKENDS.values() if target in backend.made_for)


def why_not_runnable(name: str, device: int | None = None) -> str | None:
    """Why the backend cannot run here and the next step, in one line; None if it can.

    device: ordinal of the CUDA device; None as in `SessionRequest`.
    Raises UsageError for an unknown name.
    """
    if name not in BACKENDS:
        raise UsageError(f"there is no backend {name!r}; known: {', '.join(BACKENDS)}")
    unavailable = BACKENDS[name].run_unavailable(device)
    return None if unavailable is None else str(unavailable)


def why_not_in(name: str, precision: Precision) -> str | None:
    """Why a runnable backend of ONNX files cannot compute in a precision; None if it can."""
    return BACKENDS[name].why_not_in(precision)


def open_session(request: SessionRequest) -> Session:
    """Open a session.

    Raises BackendError where the runtime cannot run here, ArtifactError for a bad file.
    """
    reason = why_not_runnable(request.backend, request.device)
    if reason is not None:
        raise UnavailableError(f"backend {request.backend} cannot run here: {reason}")
    return BACKENDS[request.backend].open(request)


def available_threads() -> int:
    """How many threads can compute at once in this process, within the limits of its container."""
    return read_limits().processors
