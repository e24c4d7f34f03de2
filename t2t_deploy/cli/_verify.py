"""``t2t-deploy verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from t2t_deploy.cli._options import artifacts_argument, common_options
from t2t_deploy.cli._output import Output
from t2t_deploy.errors import CheckFailed
from t2t_deploy.types import Status

if TYPE_CHECKING:
    from rich.console import Console


@click.command("verify", short_help="Artifacts against the reference.")
@artifacts_argument
@click.option("--images", type=click.Path(path_type=Path), help="Folder of pictures to use.")
@common_options
def command(
    artifacts: tuple[Path, ...], images: Path | None, workspace: Any, output: Output
) -> int:
    """Verify artifacts (all of the workspace if none is named) against the reference."""
    from t2t_deploy.pipeline import verify_artifacts

    results = verify_artifacts(workspace, artifacts, images, output)
    values = {
        "results": [
            {"artifact": str(artifact.path), **verification.to_dict()}
            for artifact, verification in results
        ]
    }

    def show(console: Console) -> None:
        from rich.table import Table

        table = Table("artifact", "status", "rel. error", "tolerance", "top-1 agreement", "reason")
        for artifact, found in results:
            known = found.rel_l2 is not None
            table.add_row(
                artifact.path.name,
                found.status.value,
                f"{found.rel_l2:.2e}" if known else "",
                f"{found.tolerance:.0e}",
                f"{found.top1_agreement:.0%}" if known else "",
                found.reason or "",
            )
        console.print(table)

    output.result(values, show)
    failed = [a.path.name for a, found in results if found.status is Status.FAILED]
    if not failed:
        return 0
    Output().error(CheckFailed.__name__, f"failed verification: {', '.join(failed)}")
    return CheckFailed.exit_status
