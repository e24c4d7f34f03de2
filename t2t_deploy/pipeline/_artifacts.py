"""Which artifacts a command works on: those named, else all of the workspace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from t2t_deploy.errors import ArtifactError, BackendError, UsageError
from t2t_deploy.pipeline._engine import check_engine
from t2t_deploy.pipeline._progress import Report
from t2t_deploy.runtime import why_not_runnable
from t2t_deploy.workspace import Artifact, Workspace

DEFAULT_BACKEND = "ort-cpu"
CPU_BACKENDS = (DEFAULT_BACKEND, "openvino")
"""The runtimes of ONNX files that need no device: an artifact is compared on one of them."""


def cpu_backend(name: str | None) -> str:
    """The runtime to compare ONNX files on; None is the default.

    Raises UsageError for another backend, BackendError for one asked for that cannot run here.
    """
    if name is None:
        return DEFAULT_BACKEND
    if name not in CPU_BACKENDS:
        raise UsageError(
            f"--backend is {name!r}; ONNX files are compared on {' or '.join(CPU_BACKENDS)}: name "
            "one of them"
        )
    reason = why_not_runnable(name)
    if reason is not None:
        raise BackendError(f"backend {name} cannot run here: {reason}")
    return name


def usable_artifacts(
    workspace: Workspace,
    paths: Sequence[Path],
    *,
    force: bool,
    purpose: str,
    report: Report,
    trust: bool = False,
    among: Sequence[Path] | None = None,
) -> list[Artifact]:
    """The artifacts named, or every one of the workspace that did not fail a check.

    among: take these for all that there is in the workspace; they are not named one by one, so
    what cannot be done with one of them is no error.
    trust: a named engine without manifest may be loaded. Raises ArtifactError where one that is
    named failed and ``force`` is off, or nothing is left; ``purpose`` is the verb for that message.
    Raises EngineError for a named engine that may not be loaded here.
    """
    if paths:
        named = [workspace.open(path, force=force) for path in paths]
        for artifact in named:
            if artifact.kind == "engine":
                check_engine(artifact, trust=trust)
        return named
    everything = (
        workspace.artifacts()
        if among is None
        else [workspace.open(path, force=True) for path in among]
    )
    usable = [a for a in everything if force or not a.known().failed]
    for artifact in everything:
        if artifact not in usable:
            report.note(f"left out {artifact.path.name}: {artifact.known().failure}")
    if not usable:
        raise ArtifactError(
            f"workspace {workspace.root} has nothing to {purpose}; make an artifact first: "
            "t2t-deploy export --variant 14"
        )
    return [workspace.checked(artifact, force=True) for artifact in usable]
