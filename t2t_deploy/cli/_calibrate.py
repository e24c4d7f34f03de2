"""``t2t-deploy calibrate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2t_deploy.cli._adapter import command_line
from t2t_deploy.cli._output import Output
from t2t_deploy.commands import CalibratedRanges, calibrate_onnx, calibrate_values
from t2t_deploy.errors import counted

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN_PAIRS = 10


@command_line("calibrate", calibrate_onnx)
def command(found: CalibratedRanges, output: Output) -> None:
    """Take the ranges of what linear layers read (of the newest export if none is named).

    The ranges file belongs to this graph, these pictures, this method; the same ones again are read
    from the workspace, and an interrupted calibration goes on where it was.

    \b
    t2t-deploy calibrate --images train/ --count 512
    t2t-deploy quantize --ranges artifacts/calibration/14-224-portable-....ranges
    """
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
