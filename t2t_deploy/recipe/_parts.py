"""What a step depends on, as names and short texts or hashes."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from t2t_deploy import __version__
from t2t_deploy._files import file_sha256
from t2t_deploy.commands import (
    Machine,
    calibration_pictures,
    evaluation_pictures,
    read_machine,
    verification_pictures,
)
from t2t_deploy.errors import RecipeError, shown_path
from t2t_deploy.recipe._records import ARTIFACT
from t2t_deploy.types import GraphIO
from t2t_deploy.workspace import Artifact

GRAPH_TOOLS = ("torch", "onnx", "onnxscript", "onnxsim", "numpy")
"""What shapes an exported graph."""
CHECK_TOOLS = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy")
"""What compares a graph with the reference."""
PICTURE_TOOLS = ("pillow",)
ENGINE_TOOLS = ("tensorrt", "tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings")
BENCH_TOOLS = (*CHECK_TOOLS, "openvino", *ENGINE_TOOLS)

_VERSION = "version of "
# fields of requests that are told by contents, or change nothing of what is made
_NOT_OPTIONS = frozenset(
    {
        *("artifact", "artifacts", "among", "force", "trust", "ray"),
        *("checkpoint", "config_file", "images", "eval_images", "ranges", "labels"),
        *("output", "confusion", "repository"),
    }
)


def tools(*names: str) -> dict[str, str]:
    """Versions of the packages a step's outcome depends on, and of this one."""
    found = {"t2t-deploy": __version__}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # one that comes or goes is a change too
    return {f"{_VERSION}{name}": version for name, version in found.items()}


def versions(parts: Mapping[str, str]) -> dict[str, str]:
    """The versions among parts."""
    return {name: value for name, value in parts.items() if name.startswith(_VERSION)}


def options(request: Any) -> dict[str, str]:
    """The options of a request, defaults included; paths are left to `content` and `place`."""
    found = {}
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if field.name not in _NOT_OPTIONS:
            found[f"option {field.name}"] = json.dumps(_plain(value), sort_keys=True)
    return found


def content(name: str, path: Path | None) -> dict[str, str]:
    """The content of a file that is read; nothing where none is. Raises RecipeError."""
    if path is None:
        return {}
    try:
        return {name: file_sha256(path)}
    except OSError as err:
        raise RecipeError(
            f"{name}: cannot read {shown_path(path)}: {err.strerror}; put the file there, or "
            "change its path in the recipe, which is relative to the recipe"
        ) from err


def place(name: str, path: Path | None, folder: Path) -> dict[str, str]:
    """Where something is written, as the recipe says it."""
    if path is None:
        return {}
    return {f"option {name}": str(path.relative_to(folder) if _within(path, folder) else path)}


def calibrated_on(folder: Path, count: int) -> dict[str, str]:
    """The pictures that ranges are taken on. Raises ImageError."""
    return {"calibration pictures": _pictures(calibration_pictures(folder, count))}


def judged_on(folder: Path | None, limit: int | None = None) -> dict[str, str]:
    """The pictures that accuracy is measured on, with their classes. Raises ImageError."""
    if folder is None:
        return {}
    return {"evaluation pictures": _pictures(evaluation_pictures(folder, limit))}


def verified_on(folder: Path | None) -> dict[str, str]:
    """The pictures that artifacts are verified on. Raises ImageError."""
    if folder is None:
        return {}
    return {"verification pictures": _pictures(verification_pictures(folder))}


def artifact_part(name: str, artifact: Artifact, *, verified: bool = False) -> dict[str, str]:
    """An artifact: its content, and what its manifest tells those that come after it.

    verified: its measured error counts too.
    """
    manifest = artifact.require_manifest()
    details = manifest.details
    values = [
        manifest.sha256,
        manifest.kind,
        dict(manifest.config),
        manifest.weights.get("sha256"),
        [manifest.precision.value, manifest.target, manifest.batch, manifest.opset],
        details.get("asked"),
        details.get("quantization", {}).get("mode"),
        GraphIO.of_details(details).to_details(),
        manifest.verification if verified else None,
    ]
    return {f"{ARTIFACT}{name}": text_sha256(json.dumps(values, sort_keys=True))}


def machine(*, processor: bool) -> dict[str, str]:
    """The device, and with ``processor`` all that a measured time depends on."""
    found: Machine = read_machine()
    parts = {"device": found.device}
    if processor:
        parts |= {"processor": found.processor, "cores": str(found.cores), "GPUs": found.gpus}
    return parts


def text_sha256(text: str) -> str:
    """Hash of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _pictures(found: tuple[tuple[str, str], ...]) -> str:
    """So many pictures, and a hash of their contents and classes."""
    return f"{len(found)} pictures {text_sha256(json.dumps(found))}"


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def _within(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder)
