"""Whether a workspace is whole: artifacts, weights and ranges against what is written of them."""

from __future__ import annotations

import dataclasses

from t2t_deploy.calibration import load_calibration
from t2t_deploy.errors import CalibrationError
from t2t_deploy.workspace import CALIBRATION, Workspace, WorkspaceCheck


def examine_workspace(workspace: Workspace) -> WorkspaceCheck:
    """Read every file of a workspace; nothing is changed. Ranges count among the problems only."""
    found = workspace.check()
    problems = list(found.problems)
    for path in sorted((workspace.root / CALIBRATION).glob("*.ranges")):
        try:
            load_calibration(path)
        except CalibrationError as err:
            problems.append(str(err))
    return dataclasses.replace(found, problems=tuple(problems))
