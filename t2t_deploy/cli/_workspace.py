"""``t2t-deploy workspace``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from t2t_deploy.cli._adapter import plain_command
from t2t_deploy.cli._output import Output
from t2t_deploy.cli._results import check_values, show_check
from t2t_deploy.errors import CheckFailed

if TYPE_CHECKING:
    from rich.console import Console


@plain_command("list")
def list_artifacts(workspace: Any, output: Output) -> None:
    """List the artifacts, oldest first."""
    from t2t_deploy.commands import artifact_values

    artifacts = workspace.artifacts()

    def show(console: Console) -> None:
        from rich.table import Table

        table = Table("artifact", "kind", "precision", "target", "MB", "state", "made")
        for artifact in artifacts:
            manifest = artifact.require_manifest()
            table.add_row(
                str(artifact.path),
                manifest.kind,
                manifest.precision.value,
                manifest.target,
                f"{manifest.size_bytes / 1e6:.1f}",
                f"failed: {manifest.failure}" if manifest.failed else "usable",
                manifest.created,
            )
        console.print(table)

    output.result({"artifacts": [artifact_values(artifact) for artifact in artifacts]}, show)


@plain_command("check")
def check(workspace: Any, output: Output) -> int:
    """Compare every file with what is written of it."""
    from t2t_deploy.commands import examine_workspace

    found = examine_workspace(workspace)
    output.result(check_values(found), lambda console: show_check(console, found))
    return CheckFailed.exit_status if found.problems else 0


_FOLDERS = click.Argument(
    ["folders"], nargs=-1, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
_CACHE = click.Option(
    ["--cache"],
    is_flag=True,
    help="Also what runtimes compiled and builders timed here; they do it again.",
)


@plain_command("prune", [_FOLDERS, _CACHE])
def prune(workspace: Any, output: Output, folders: tuple[Path, ...], cache: bool) -> None:
    """Remove what killed commands left behind; what a running one is writing stays.

    FOLDERS: others that commands wrote to, by -o, --csv or package. What is below them is not
    looked at.
    """
    from t2t_deploy.commands import prune_workspace

    removed = prune_workspace(workspace, folders, compiled=cache)

    def show(console: Console) -> None:
        console.print(f"removed {len(removed)} files and folders")
        for path in removed:
            console.print(str(path), markup=False)

    output.result({"removed": [str(path) for path in removed]}, show)


command = click.Group(
    "workspace",
    commands=[list_artifacts, check, prune],
    help="List, check and tidy the artifacts.",
    no_args_is_help=False,
)
