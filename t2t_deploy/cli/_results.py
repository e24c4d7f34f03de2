"""Parts of results that several commands print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from t2t_deploy.cli._output import Output
from t2t_deploy.errors import CheckFailed
from t2t_deploy.types import Status

if TYPE_CHECKING:
    from rich.console import Console


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


def fail_if(check: Mapping[str, Any] | None, output: Output) -> int:
    """Exit status of a finished command: 3, with the reason on stderr, where its check failed."""
    if check is None or check["status"] != Status.FAILED.value:
        return 0
    # The result is already on stdout, as the JSON object or the table: only stderr is left.
    Output(verbosity=output.verbosity).error(CheckFailed.__name__, f"failed: {check['reason']}")
    return CheckFailed.exit_status
