"""Whether a workspace is whole, and how what killed commands left in it goes away."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from t2t_deploy.calibration import load_calibration
from t2t_deploy.errors import CalibrationError
from t2t_deploy.serving.triton import put_back
from t2t_deploy.workspace import CALIBRATION, Workspace, WorkspaceCheck, finished


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
