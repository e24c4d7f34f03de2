"""``t2t-deploy calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from t2t_deploy.cli._options import (
    artifact_argument,
    calibration_options,
    common_options,
    force_option,
    output_option,
)
from t2t_deploy.cli._output import Output
from t2t_deploy.errors import counted
from t2t_deploy.types import Target

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN_PAIRS = 10


@click.command("calibrate", short_help="Pictures -> ranges file, for quantize.")
@artifact_argument
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of pictures like those the model will see; subfolders are looked into.",
)
@calibration_options
@click.option(
    "--target",
    type=click.Choice([target.value for target in Target]),
    help="What the quantised graph will be made for; default the artifact's.",
)
@force_option
@output_option
@common_options
def command(artifact: Path | None, workspace: Any, output: Output, **options: Any) -> int:
    """Take the ranges of what linear layers read (of the newest export if none is named).

    The ranges file belongs to this graph, these pictures, this method; the same ones again are read
    from the workspace, and an interrupted calibration goes on where it was.

    \b
    t2t-deploy calibrate --images train/ --count 512
    t2t-deploy quantize --ranges artifacts/calibration/14-224-portable-....ranges
    """
    from t2t_deploy.calibration import RangeMethod
    from t2t_deploy.commands import (
        DEFAULT_COUNT,
        DEFAULT_METHOD,
        CalibrateRequest,
        calibrate_artifact,
        calibrate_values,
    )

    found = calibrate_artifact(
        workspace,
        CalibrateRequest(
            images=options["images"],
            artifact=artifact,
            target=Target(options["target"]) if options["target"] else None,
            count=options["count"] or DEFAULT_COUNT,
            method=RangeMethod(options["method"]) if options["method"] else DEFAULT_METHOD,
            equalise=options["equalise"],
            output=options["output_file"],
            force=options["force"],
        ),
        output,
    )
    calibration = found.calibration
    key, pairs = calibration.key, calibration.equalisation.applied
    values = calibrate_values(found)
    read = values["calibration"]["images"]

    def show(console: Console) -> None:
        from rich.table import Table

        table = Table("equalised, widest first", "read by", "largest / median channel", "after")
        widest = sorted(pairs, key=lambda pair: -pair.spread_before)
        for pair in widest[:_SHOWN_PAIRS]:
            names = ", ".join(name.rpartition(".")[2] for name in pair.layers)
            table.add_row(
                pair.producer, names, f"{pair.spread_before:.1f}", f"{pair.spread_after:.1f}"
            )
        if pairs:
            console.print(table)
            left = len(pairs) - _SHOWN_PAIRS
            if left > 0:
                console.print(f"and {left} more; --json names them all", markup=False)
        console.print(
            f"{len(calibration.ranges)} ranges ({key.method.value}) from {counted(read, 'picture')}"
            + (f", {len(calibration.unreadable)} unreadable" if calibration.unreadable else ""),
            markup=False,
        )
        console.print(str(found.path), markup=False)

    output.result(values, show)
    return 0
