"""Parts of results that several commands print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from t2t_deploy.cli._output import Output
from t2t_deploy.errors import CheckFailed, counted, one_line, shown_path
from t2t_deploy.types import Status

if TYPE_CHECKING:
    from rich.console import Console

    from t2t_deploy.workspace import Artifact, WorkspaceCheck


SHOWN_UNREADABLE = 10
"""Pictures without a class that are named; the rest is counted."""


def locating(artifact: Artifact) -> str:
    """How to find which layer of a failed artifact is wrong."""
    return f"which layer: t2t-deploy verify --locate {shown_path(artifact.path)}"


def show_verification(console: Console, verification: Mapping[str, Any] | None) -> None:
    """One line on how a verification went."""
    if verification is None:
        console.print("verification not run: not asked for")
        return
    if verification["rel_l2"] is None:
        status = str(verification["status"]).replace("_", " ")
        console.print(f"verification {status}: {verification['reason']}", markup=False)
        return
    console.print(
        f"verification {verification['status']}: relative error {verification['rel_l2']:.2e} of "
        f"{verification['tolerance']:.0e} allowed, on "
        f"{counted(len(verification['pictures']), 'picture')}",
        markup=False,
    )


def check_values(found: WorkspaceCheck) -> dict[str, Any]:
    """What a check of a workspace found, JSON-ready."""
    return {
        "artifacts": found.artifacts,
        "problems": list(found.problems),
        "leftovers": [str(path) for path in found.leftovers],
    }


def show_check(console: Console, found: WorkspaceCheck) -> None:
    """A line, and one for each problem."""
    console.print(
        f"{counted(found.artifacts, 'artifact')}, {counted(len(found.problems), 'problem')}",
        markup=False,
    )
    for problem in found.problems:
        console.print(one_line(problem), markup=False)
    if found.leftovers:
        console.print(
            f"{len(found.leftovers)} files and folders of killed commands; t2t-deploy workspace "
            "prune removes them",
            markup=False,
        )


def fail_if(check: Mapping[str, Any] | None, *, hint: str | None = None) -> int:
    """Exit status of a finished command: 3, with the reason on stderr, where its check failed.

    hint: what to do about it.
    """
    if check is None or check["status"] != Status.FAILED.value:
        return 0
    return fell_short(f"failed: {check['reason']}" + ("" if hint is None else f"; {hint}"))


def fell_short(message: str) -> int:
    """Say on stderr what a finished command's check found; returns the exit status, 3.

    The result is on stdout already, as the JSON object or the table.
    """
    Output().error(CheckFailed.__name__, message)
    return CheckFailed.exit_status
