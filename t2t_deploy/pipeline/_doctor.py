"""What this machine can build and run, and why not the rest."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from dataclasses import asdict, dataclass
from typing import Any

from t2t_deploy import __version__
from t2t_deploy._optional import EXTRAS, is_installed, require
from t2t_deploy.errors import MissingDependencyError
from t2t_deploy.runtime import BACKENDS, device_capability, why_not_runnable
from t2t_deploy.workspace import tool_versions


@dataclass(frozen=True, slots=True)
class BackendState:
    """Whether a backend runs here; reason and next step where it does not."""

    name: str
    about: str
    runs: bool
    reason: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def examine_machine() -> dict[str, Any]:
    """Versions, what can be built here, and each backend's state, JSON-ready."""
    backends = []
    for backend in BACKENDS.values():
        reason = why_not_runnable(backend.name)
        backends.append(BackendState(backend.name, backend.about, reason is None, reason).to_dict())
    return {
        "t2t_deploy": __version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "cuda_device": device_capability(),
        "versions": tool_versions(),
        "can": {
            "export": _importable("torch", "onnxsim"),
            "build-trt": _importable("tensorrt_rtx"),
        },
        "onnxruntime": _onnxruntime_packages(),
        "backends": backends,
    }


def _importable(*modules: str) -> dict[str, Any]:
    for module in modules:
        try:
            require(module)
        except MissingDependencyError as err:
            return {"ok": False, "why_not": str(err)}
    return {"ok": True, "why_not": None}


def _onnxruntime_packages() -> dict[str, Any]:
    """Which wheels fill the onnxruntime folder: exactly one should."""
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(name)
    problem = None
    if not found:
        problem = (
            f"neither is installed: pip install 't2t-deploy[{EXTRAS['onnxruntime']}]' or [gpu]"
        )
    elif len(found) > 1:
        problem = (
            "both are installed and overwrite each other's files: uninstall both, then install "
            "'t2t-deploy[cpu]' or 't2t-deploy[gpu]'"
        )
    elif not is_installed("onnxruntime"):
        problem = f"{found[0]} is registered but its files are gone: reinstall it"
    return {"installed": found, "problem": problem}
