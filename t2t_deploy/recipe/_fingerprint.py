"""What a step depends on, as names and short texts or hashes: options, contents, tools, machine."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from t2t_deploy import __version__
from t2t_deploy._codec import to_plain
from t2t_deploy._files import file_sha256
from t2t_deploy._limits import read_limits
from t2t_deploy._optional import installed_versions
from t2t_deploy._options import Role, parameters
from t2t_deploy._processor import read_processor
from t2t_deploy.bench import visible_gpus
from t2t_deploy.commands import MAX_IMAGES, calibration_images
from t2t_deploy.engine import device_capability
from t2t_deploy.errors import RecipeError, shown_path
from t2t_deploy.pictures import image_set_from_folder, labelled_set_from_folder
from t2t_deploy.recipe._records import ARTIFACT
from t2t_deploy.runtime import BACKENDS, DEFAULT_BACKEND
from t2t_deploy.workspace import Artifact

GRAPH_TOOLS = ("torch", "onnx", "onnxscript", "onnxsim", "numpy")
"""What shapes an exported graph."""
CHECK_TOOLS = ("torch", "onnx", *BACKENDS[DEFAULT_BACKEND].tools, "numpy")
"""What compares a graph with the reference."""
IMAGE_TOOLS = ("pillow",)
RUNTIME_TOOLS = tuple(tool for backend in BACKENDS.values() for tool in backend.tools)
ENGINE_TOOLS = tuple(
    tool for backend in BACKENDS.values() if backend.takes == "engine" for tool in backend.tools
)

_VERSION = "version of "
_IMAGES = " pictures"  # ends the names of sets of images


def arguments_of(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a command's declared parameters, defaults included."""
    found = {}
    for name, parameter in parameters(function).items():
        value = given.get(name, parameter.default)
        found[name] = None if value is inspect.Parameter.empty else parameter.read(value)
    return found


def command_fingerprint(
    function: Callable[..., Any], given: Mapping[str, Any], folder: Path, *, files: bool = True
) -> dict[str, str]:
    """What a command's arguments add: values of options, contents of what it reads.

    folder: of the recipe, which paths that are written are relative to. files: whether those that
    are read or written count. Raises RecipeError, ImageError.
    """
    values = arguments_of(function, given)
    options: dict[str, Any] = {}
    found: dict[str, str] = {}
    for name, parameter in parameters(function).items():
        value, role = values[name], parameter.opt.role
        recorded = name if parameter.opt.recorded is None else parameter.opt.recorded
        if parameter.opt.later and value == parameter.read(parameter.default):
            continue
        # a word instead of a file is a value like others
        if recorded and (role is Role.OPTION or isinstance(value, (Enum, str))):
            whole, _, part = recorded.partition(".")
            if part:
                options.setdefault(whole, {})[part] = to_plain(value)
            else:
                options[whole] = to_plain(value)
        elif value is None or not files or not recorded:
            continue
        elif recorded.endswith(_IMAGES):
            found[recorded] = _images(recorded, value, values)
            found |= tools(*IMAGE_TOOLS)
        elif role is Role.READS:
            found |= content(recorded, value)
        elif role is Role.WRITES:
            inside = value.is_relative_to(folder)
            found[f"option {recorded}"] = str(value.relative_to(folder) if inside else value)
    for name, option in options.items():
        found[f"option {name}"] = json.dumps(option, sort_keys=True)
    return found


def tools(*names: str) -> dict[str, str]:
    """Versions of the packages a step's outcome depends on, and of this one."""
    # one that comes or goes is a change too
    found = {"t2t-deploy": __version__} | installed_versions(*names)
    return {f"{_VERSION}{name}": version for name, version in found.items()}


def versions(fingerprint: Mapping[str, str]) -> dict[str, str]:
    """The versions in a fingerprint."""
    return {name: value for name, value in fingerprint.items() if name.startswith(_VERSION)}


def content(name: str, path: Path | None) -> dict[str, str]:
    """The content of a file or folder that is read; nothing where none is. Raises RecipeError.

    Of a checkpoint that is a hub's folder, its weights file, and the description beside it.
    """
    if path is None:
        return {}
    found = {}
    if name == "checkpoint":
        from t2t_deploy.model import weights_file  # loads torch

        path = weights_file(path)
        beside = path.with_name("config.json")
        found = {f"{name}'s config.json": file_sha256(beside)} if beside.is_file() else {}
    try:
        if path.is_dir():
            files = sorted(one for one in path.rglob("*") if one.is_file())
            listed = [(one.relative_to(path).as_posix(), file_sha256(one)) for one in files]
            return {name: text_sha256(json.dumps(listed))}
        return {**found, name: file_sha256(path)}
    except OSError as err:
        raise RecipeError(
            f"{name}: cannot read {shown_path(path)}: {err.strerror}; put the file there, or "
            "change its path in the recipe, which is relative to the recipe"
        ) from err


def artifact_fingerprint(
    name: str, artifact: Artifact, *, verified: bool = False
) -> dict[str, str]:
    """An artifact: its content, and what its manifest says to those that come after it.

    verified: its measured error counts too.
    """
    manifest = artifact.require_manifest()
    values = [
        manifest.sha256,
        manifest.kind,
        dict(manifest.config),
        manifest.weights_sha256,
        [manifest.precision.value, manifest.target, manifest.batch, manifest.opset],
        manifest.details.get("asked"),
        manifest.quantization.mode,
        manifest.graph_io.to_details(),
        manifest.verification if verified else None,
    ]
    if manifest.class_names is not None:
        values.append(manifest.class_names)
    return {f"{ARTIFACT}{name}": text_sha256(json.dumps(values, sort_keys=True))}


def machine(*, processor: bool) -> dict[str, str]:
    """The device, and with ``processor`` all that a measured time depends on."""
    found = {"device": str(device_capability() or "none")}
    if processor:
        found["processor"] = read_processor().model
        limits = read_limits()
        within = "" if limits.quota is None else f", a quota of {limits.quota:g}"
        found["cores"] = f"{limits.affinity}{within}"
        found["GPUs"] = ", ".join(gpu.name for gpu in visible_gpus()) or "none"
    return found


def text_sha256(text: str) -> str:
    """Hash of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _images(kind: str, folder: Path, given: Mapping[str, Any]) -> str:
    """How many images a command reads, and a hash of their contents and classes, in its order."""
    classes: tuple[str, ...] = ()
    if kind.startswith("evaluation") and given.get("targets") is not None:
        named = image_set_from_folder(folder)  # by the names that the table has
        names = [path.relative_to(folder).as_posix() for path in named.paths]
        images = list(zip(names, named.digests(), strict=True))
    elif kind.startswith("evaluation"):
        found = labelled_set_from_folder(folder, limit=given.get("limit"))
        # every class folder counts: their number says which class a name means
        classes = found.folders
        names = [found.folders[index] for index in found.classes] or [""] * len(found.paths)
        images = list(zip(names, map(file_sha256, found.paths), strict=True))
    else:
        if kind.startswith("verification"):
            some = image_set_from_folder(folder, count=MAX_IMAGES)
        else:
            some = calibration_images(folder, given["count"])
        images = [("", digest) for digest in some.digests()]
    every = [*((name, "") for name in classes), *images]
    return f"{len(every)} pictures {text_sha256(json.dumps(every))}"
