"""``t2t-deploy predict --ray``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from t2t_deploy.cli._output import Output
from t2t_deploy.cli._results import SHOWN_UNREADABLE, fell_short
from t2t_deploy.errors import counted

if TYPE_CHECKING:
    from rich.console import Console

    from t2t_deploy.commands import ClusterPrediction, PredictRequest, RayRequest


def run_across(workspace: Any, request: PredictRequest, ray: RayRequest, output: Output) -> int:
    """Run it, print what was done, return the exit status."""
    from t2t_deploy.commands import predict_across

    found = predict_across(workspace, request, ray, output)
    output.result(_values(found), lambda console: _show(console, found))
    if not found.failed:
        return 0
    return fell_short(f"{found.failed} of {found.images + found.failed} pictures have no class")


def _values(found: ClusterPrediction) -> dict[str, Any]:
    from t2t_deploy.commands import artifact_values

    return {
        "artifact": artifact_values(found.artifact),
        "backend": found.backend,
        "labels": found.labels.source,
        "images": found.images + found.failed,
        "results": [],  # they are in the files
        "unreadable": [{"image": name, "reason": reason} for name, reason in found.unreadable],
        "failed": found.failed,
        "output": str(found.output),
        "blocks": found.blocks,
        "skipped_blocks": found.skipped,
        "superseded_blocks": found.superseded,
        "workers": found.workers,
        "seconds": found.seconds,
    }


def _show(console: Console, found: ClusterPrediction) -> None:
    console.print(
        f"{counted(found.images, 'picture')} classified in {counted(found.blocks, 'file')} of "
        f"{found.output}/predictions, by {counted(found.workers, 'worker')} in "
        f"{found.seconds:.1f} s",
        markup=False,
    )
    if not found.failed:
        return
    console.print(f"{found.failed:,} have no class: {found.output}/failed", markup=False)
    for _, reason in found.unreadable[:SHOWN_UNREADABLE]:
        console.print(reason, markup=False)
    left = found.failed - SHOWN_UNREADABLE
    if left > 0:
        console.print(f"and {left:,} more", markup=False)
