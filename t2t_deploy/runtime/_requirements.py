"""What each backend needs of a machine, asked in the order in which a person would mend it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping

from t2t_deploy._optional import EXTRAS, is_installed, require
from t2t_deploy.engine import Unavailable, device_capability, supported_sms, why_no_device
from t2t_deploy.errors import MissingDependencyError
from t2t_deploy.runtime._cuda import CUDA_MODULE

TORCH_BACKENDS = frozenset({"eager", "compile"})
ORT_GPU_BACKENDS = frozenset({"ort-cuda", "ort-tensorrt"})
TENSORRT_MODULES: Mapping[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# the backends that need a GPU whatever is asked
GPU_BACKENDS = ORT_GPU_BACKENDS | frozenset(TENSORRT_MODULES)

MODULES: Mapping[str, str] = {
    "eager": "torch",
    "compile": "torch",
    "ort-cpu": "onnxruntime",
    "ort-cuda": "onnxruntime",
    "ort-tensorrt": "onnxruntime",
    "openvino": "openvino",
    **TENSORRT_MODULES,
}
"""The optional package of each backend."""

_Check = Callable[[], Unavailable | None]


def run_unavailable(name: str, device: int | None = None) -> Unavailable | None:
    """The first thing that keeps a backend from running here; nothing is opened.

    name: one of `MODULES`. device: ordinal of the CUDA device; None as in `SessionRequest`.
    """
    checks: list[_Check] = []
    if name in GPU_BACKENDS or (name in TORCH_BACKENDS and device is not None):
        checks.append(lambda: why_no_device(device or 0))
    checks.append(lambda: _absent(MODULES[name], extra_of(name)))
    if name == "compile" and device is None:
        checks.append(_no_compiler)
    if name in GPU_BACKENDS:
        checks.append(lambda: import_unavailable(name))
    if name in TENSORRT_MODULES:
        checks.append(lambda: _absent(CUDA_MODULE, extra_of(name)))
    if name == "tensorrt-rtx":
        checks.append(lambda: _unsupported_device(device or 0))
    if name in ORT_GPU_BACKENDS:
        checks.append(lambda: _provider_obstacle(name))
    if name in TORCH_BACKENDS and device is not None:
        checks.append(_torch_without_cuda)
    return next((found for check in checks if (found := check()) is not None), None)


def build_unavailable(name: str) -> Unavailable | None:
    """The first thing that keeps a backend's engines from being built here.

    name: one of `TENSORRT_MODULES`. TensorRT-RTX needs no device for it, TensorRT does.
    """
    missing = import_unavailable(name)
    if missing is not None or name == "tensorrt-rtx":
        return missing
    return why_no_device()


def import_unavailable(name: str) -> Unavailable | None:
    """What keeps the package of a backend from being imported: it is absent, or broken."""
    module = MODULES[name]
    missing = _absent(module, extra_of(name))
    if missing is not None:
        return missing
    try:
        require(module)
    except MissingDependencyError as err:
        cause = err.__cause__
        return Unavailable(
            f"{module} is installed but does not import ({type(cause).__name__}: {cause})",
            "reinstall it",
        )
    return None


def extra_of(name: str) -> str:
    """The extra of t2t-deploy that brings a backend."""
    return "gpu" if name in ORT_GPU_BACKENDS else EXTRAS[MODULES[name]]


def _absent(module: str, extra: str) -> Unavailable | None:
    if is_installed(module):
        return None
    return Unavailable(f"{module} is not installed", f"pip install 't2t-deploy[{extra}]'")


def _provider_obstacle(name: str) -> Unavailable | None:
    from t2t_deploy.runtime._ort_gpu import why_no_provider

    return why_no_provider(require("onnxruntime"), name)


def _unsupported_device(ordinal: int) -> Unavailable | None:
    """A device that TensorRT-RTX has no kernels for; it lists those it has."""
    known = supported_sms(require("tensorrt_rtx"))
    found = device_capability(ordinal)
    # one newer than the newest listed is left to portable engines
    if not known or found is None or found in known or int(found) > max(map(int, known)):
        return None
    return Unavailable(
        f"TensorRT-RTX has no kernels for compute capability {found} (it has {', '.join(known)})",
        "use --backend ort-cuda, ort-tensorrt or tensorrt",
    )


def _no_compiler() -> Unavailable | None:
    """torch.compile writes C++ for a CPU, and calls the compiler that its authors would."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX", usual)
    if shutil.which(compiler) is not None:
        return None
    return Unavailable(
        f"torch.compile needs a C++ compiler ({compiler} not found)",
        "install it (Debian, Ubuntu: apt install g++), or name another in CXX",
    )


def _torch_without_cuda() -> Unavailable | None:
    from t2t_deploy.runtime._eager import torch_has_cuda

    if torch_has_cuda():
        return None
    return Unavailable(
        "this build of torch has no CUDA",
        "install one that has: https://pytorch.org/get-started/locally",
    )
