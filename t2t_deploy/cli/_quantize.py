"""``t2t-deploy quantize``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from t2t_deploy.cli._adapter import command_line
from t2t_deploy.cli._output import Output
from t2t_deploy.cli._results import fail_if, locating, show_verification
from t2t_deploy.commands import quantize_onnx, quantize_values
from t2t_deploy.errors import counted
from t2t_deploy.types import Status
from t2t_deploy.workspace import Artifact

if TYPE_CHECKING:
    from rich.console import Console


@command_line("quantize", quantize_onnx)
def command(made: Artifact, output: Output) -> int:
    """Quantise the linear layers of an export (the newest if none is named).

    \b
    t2t-deploy quantize --images train/                          static, for any runtime
    t2t-deploy quantize --images train/ --target tensorrt        int8 products in an fp16 graph
    t2t-deploy quantize --images train/ --mode dynamic           for ONNX Runtime on the CPU
    t2t-deploy quantize --images train/ --max-drop 0.5 --eval val/
    """
    manifest = made.require_manifest()
    values = quantize_values(made)
    quantization, speed, budget = (values[name] for name in ("quantization", "speed", "budget"))

    def show(console: Console) -> None:
        console.print(
            f"{quantization['quantized_nodes']} products in {quantization['type']}, "
            f"{quantization['float_nodes']} in {quantization['base']}; {quantization['share']:.1%} "
            "of the linear layers' multiply-adds are quantised",
            markup=False,
        )
        if budget is not None:
            _show_budget(console, budget)
        show_verification(console, manifest.verification)
        if speed is not None:
            _show_speed(console, speed)
        console.print(str(made.path), markup=False)

    output.result(values, show)
    found = fail_if(manifest.verification, hint=locating(made))
    return found or fail_if(budget)


def _show_budget(console: Console, budget: dict[str, Any]) -> None:
    console.print(
        f"budget {budget['status']}: {budget['drop']:.2f} points of {budget['measure']} lost of "
        f"{budget['max_drop']:g} allowed, on {counted(budget['images'], 'picture')}; back in "
        f"float: {', '.join(budget['returned']) or 'none'}",
        markup=False,
    )


def _show_speed(console: Console, speed: dict[str, Any]) -> None:
    if speed["status"] != Status.PASSED.value:
        status = speed["status"].replace("_", " ")
        console.print(f"speed {status}: {speed['reason']}", markup=False)
        return
    unstable = ", unstable" if speed["unstable"] else ""
    console.print(
        f"{speed['verdict']}: {speed['ratio']:.2f} [{speed['low']:.2f}, {speed['high']:.2f}] "
        f"times as fast in {speed['backend']}, batch {speed['batch']}, "
        f"{counted(speed['threads'], 'thread')}{unstable}",
        markup=False,
    )
