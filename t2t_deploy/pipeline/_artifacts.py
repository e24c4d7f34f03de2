"""Which artifacts a command works on: those named, else all of the workspace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from t2t_deploy.errors import ArtifactError
from t2t_deploy.pipeline._engine import check_engine
from t2t_deploy.pipeline._progress import Report
from t2t_deploy.workspace import Artifact, Workspace


def usable_artifacts(
    workspace: Workspace,
    paths: Sequence[Path],
    *,
    force: bool,
    purpose: str,
    report: Report,
    trust: bool = False,
) -> list[Artifact]:
    """The artifacts named, or every one of the workspace that did not fail a check.

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
    everything = workspace.artifacts()
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
