"""What this machine can build and run, and why not the rest; whether a workspace is whole."""

from __future__ import annotations

import dataclasses
import getpass
import json
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2t_deploy import __version__
from t2t_deploy._codec import to_plain
from t2t_deploy._limits import read_limits
from t2t_deploy._optional import EXTRAS, WHEELS, installed_versions, is_installed, require
from t2t_deploy._processor import read_processor
from t2t_deploy.calibration import load_calibration
from t2t_deploy.engine import device_capability, why_no_device
from t2t_deploy.errors import CalibrationError, MissingDependencyError
from t2t_deploy.runtime import BACKENDS, Backend, backend_for
from t2t_deploy.serving.triton import put_back
from t2t_deploy.types import Target
from t2t_deploy.workspace import CALIBRATION, Workspace, WorkspaceCheck, finished, tool_versions


def examine_machine() -> dict[str, Any]:
    """What this machine can build and run, and why not the rest: ``t2t-deploy doctor``.

    JSON-ready: versions, what can be built here, and each backend's state.

    Examples
    --------
    >>> from t2t_deploy import examine_machine
    >>> [one["runs"] for one in examine_machine()["backends"] if one["name"] == "ort-cpu"]
    [True]
    """
    absent, limits = why_no_device(), read_limits()
    return {
        "t2t_deploy": __version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "processor": read_processor().to_dict(),
        "limits": {**to_plain(limits), "processors": limits.processors},
        "cuda_device": device_capability(),
        "why_no_device": None if absent is None else str(absent),
        "versions": tool_versions(),
        "can": {
            "export": _importable("torch", "onnxsim"),
            "build-trt": _importable(BACKENDS[backend_for(Target.TENSORRT)].module),
        },
        "onnxruntime": _onnxruntime_packages(),
        "backends": [_state_of(backend) for backend in BACKENDS.values()],
    }


def _state_of(backend: Backend) -> dict[str, Any]:
    """What a backend can do here, JSON-ready; nothing is opened. Its package is imported.

    device: whether there is what it computes on. builds: whether its engines can be built here,
    None of a backend that has none. reason, next_step: what keeps it from running.
    steps: of all that it cannot do, the reason and the next step in one line each.
    """
    importing = backend.import_unavailable()
    # what `run_unavailable` leaves to the opening of a session
    running = backend.run_unavailable() or importing
    builds = backend.takes == "engine"
    building = backend.build_unavailable() if builds else None
    version = getattr(require(backend.module), "__version__", None) if importing is None else None
    return {
        "name": backend.name,
        "about": backend.about,
        "version": None if version is None else str(version),
        "importable": importing is None,
        "device": not backend.needs_gpu or why_no_device() is None,
        "builds": building is None if builds else None,
        "runs": running is None,
        "reason": None if running is None else running.reason,
        "next_step": None if running is None else running.next_step,
        "steps": tuple(dict.fromkeys(str(each) for each in (running, importing, building) if each)),
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
    found = list(installed_versions(*WHEELS["onnxruntime"]))
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


# Whole absolute paths, of either kind of system; a slash inside a word or a URL begins none.
_PATH = re.compile(
    r"(?<![\w./\\~>-])(?:/[^/\s'\"<>|:;,]+){2,}"  # /home/ann/x: one part alone may be a word, /s
    r"|\b[A-Za-z]:\\[^\s'\"<>|:;,]+"
)
_LAST_PART = re.compile(r"[/\\]")


def backend_cells(backend: Mapping[str, Any]) -> list[str]:
    """A backend of `examine_machine` in a table: its name, its version, what it can do."""
    flags = [backend[name] for name in ("importable", "device", "builds", "runs")]
    shown = ["-" if flag is None else "yes" if flag else "no" for flag in flags]
    return [backend["name"], backend["version"] or "-", *shown]


def bug_report(found: Mapping[str, Any]) -> str:
    """`examine_machine`'s answer as Markdown for an issue; paths, user and host left out."""
    backends = [f"| {' | '.join(backend_cells(backend))} |" for backend in found["backends"]]
    lines = [
        f"t2t-deploy {found['t2t_deploy']}, Python {found['python']}, {found['platform']}, "
        f"CUDA device {found['cuda_device'] or 'none'}",
        "",
        "| backend | version | imports | device | builds | runs |",
        "|---|---|---|---|---|---|",
        *backends,
        "",
        "<details><summary>All that doctor found</summary>",
        "",
        "```json",
        json.dumps(found, indent=1, sort_keys=True),
        "```",
        "",
        "</details>",
    ]
    return without_paths("\n".join(lines))


def without_paths(text: str) -> str:
    """The text with absolute paths cut to their last part, and user and host named as such."""
    # by name first: only there is it known where a path with spaces ends
    for path, stand_in in ((Path.cwd(), "<cwd>"), (Path.home(), "~"), (sys.prefix, "<python>")):
        if len(Path(path).parts) > 1:
            text = text.replace(str(path), stand_in)
    text = _PATH.sub(lambda match: f"<path>/{_LAST_PART.split(match[0])[-1]}", text)
    for name, stand_in in ((_user(), "<user>"), (platform.node(), "<host>")):
        if name:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", stand_in, text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        return ""


def examine_workspace(workspace: Workspace) -> WorkspaceCheck:
    """Read every file of a workspace; nothing is changed. Ranges count among the problems only."""
    found = workspace.check()
    problems = list(found.problems)
    for path in finished(workspace.root / CALIBRATION, "*.ranges"):
        try:
            load_calibration(path)
        except CalibrationError as err:
            problems.append(str(err))
    return dataclasses.replace(found, problems=tuple(problems))


def prune_workspace(
    workspace: Workspace, folders: Sequence[Path] = (), *, compiled: bool = False
) -> list[Path]:
    """Remove what killed commands left, in other folders that they wrote to as well; returns it.

    A model that `package_artifact` was about to replace when it was killed is put back first.
    compiled: also what runtimes compiled here.
    """
    for folder in folders:
        put_back(folder)
    return workspace.prune(also=folders, compiled=compiled)
