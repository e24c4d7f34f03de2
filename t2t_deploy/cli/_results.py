"""Parts of results that several commands print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from t2t_deploy.cli._output import Output
from t2t_deploy.errors import CheckFailed, shown_path
from t2t_deploy.types import Status

if TYPE_CHECKING:
    from rich.console import Console

    from t2t_deploy.pipeline import Artifact


def artifact_values(artifact: Artifact) -> dict[str, Any]:
    """The ``artifact`` object of the JSON contract."""
    manifest = artifact.manifest
    if manifest is None:
        return {"path": str(artifact.path)}
    return {
        "path": str(artifact.path),
        "sha256": manifest.sha256,
        "kind": manifest.kind,
        "variant": manifest.variant,
        "precision": manifest.precision.value,
        "target": manifest.target,
        "batch": "dynamic" if manifest.batch is None else manifest.batch,
        "image_size": manifest.config.get("image_size"),
        "num_classes": manifest.config.get("num_classes"),
        "opset": manifest.opset,
        "strategies": manifest.strategies,
        "size_bytes": manifest.size_bytes,
    }


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
        f"{verification['tolerance']:.0e} allowed, on {len(verification['pictures'])} pictures",
        markup=False,
    )


def fail_if(check: Mapping[str, Any] | None, output: Output, *, hint: str | None = None) -> int:
    """Exit status of a finished command: 3, with the reason on stderr, where its check failed.

    hint: what to do about it.
    """
    if check is None or check["status"] != Status.FAILED.value:
        return 0
    # The result is already on stdout, as the JSON object or the table: only stderr is left.
    message = f"failed: {check['reason']}" + ("" if hint is None else f"; {hint}")
    Output(verbosity=output.verbosity).error(CheckFailed.__name__, message)
    return CheckFailed.exit_status
