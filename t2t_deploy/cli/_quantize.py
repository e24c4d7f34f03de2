"""``t2t-deploy quantize``."""

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
from t2t_deploy.cli._results import fail_if, locating, show_verification
from t2t_deploy.errors import counted
from t2t_deploy.types import Precision, Status, Target

if TYPE_CHECKING:
    from rich.console import Console


@click.command("quantize", short_help="Export -> INT8 or FP8 graph, verified.")
@artifact_argument
@click.option(
    "--type",
    "precision",
    type=click.Choice(["int8", "fp8", "int8-weights", "fp8-weights"]),
    default="int8",
    show_default=True,
    help="fp8 is for TensorRT on SM89 and newer; -weights stores weights so and computes in fp16.",
)
@click.option(
    "--mode",
    type=click.Choice(["static", "dynamic"]),
    default="static",
    show_default=True,
    help="Ranges from pictures, or taken at run time (ONNX Runtime on the CPU).",
)
@click.option(
    "--target",
    type=click.Choice([target.value for target in Target]),
    help="Default the artifact's; cpu for dynamic ranges, tensorrt for fp8.",
)
@click.option(
    "--base",
    type=click.Choice(["fp32", "fp16"]),
    help="Type of all that is not quantised; default fp16 for tensorrt, else fp32.",
)
@click.option(
    "--images", type=click.Path(path_type=Path), help="Folder of pictures to calibrate on."
)
@calibration_options
@click.option(
    "--ranges", type=click.Path(path_type=Path), help="Ranges file of t2t-deploy calibrate."
)
@click.option(
    "--placement",
    type=click.Choice(["auto", "balanced", "compact", "accurate"]),
    help="For engines: compact moves least at batch 1, accurate (int8) rounds least, auto asks the "
    "builder. Default balanced.",
)
@click.option(
    "--max-drop",
    type=float,
    metavar="PCT",
    help="Return layers to float until at most this many points are lost on --eval.",
)
@click.option(
    "--eval",
    "eval_images",
    type=click.Path(path_type=Path),
    help="Pictures to measure the drop on: class folders, or no labels (then agreement).",
)
@click.option(
    "--no-speed", is_flag=True, help="Do not time the graph against its float base afterwards."
)
@force_option
@output_option
@common_options
def command(artifact: Path | None, workspace: Any, output: Output, **options: Any) -> int:
    """Quantise the linear layers of an export (the newest if none is named).

    \b
    t2t-deploy quantize --images train/                          static, for any runtime
    t2t-deploy quantize --images train/ --target tensorrt        int8 products in an fp16 graph
    t2t-deploy quantize --images train/ --mode dynamic           for ONNX Runtime on the CPU
    t2t-deploy quantize --images train/ --max-drop 0.5 --eval val/
    """
    from t2t_deploy.calibration import RangeMethod
    from t2t_deploy.commands import (
        DEFAULT_COUNT,
        DEFAULT_METHOD,
        QuantizationMode,
        QuantizeRequest,
        quantize_artifact,
        quantize_values,
    )

    made = quantize_artifact(
        workspace,
        QuantizeRequest(
            artifact=artifact,
            precision=Precision(options["precision"]),
            mode=QuantizationMode(options["mode"]),
            target=Target(options["target"]) if options["target"] else None,
            base=Precision(options["base"]) if options["base"] else None,
            images=options["images"],
            count=options["count"] or DEFAULT_COUNT,
            method=RangeMethod(options["method"]) if options["method"] else DEFAULT_METHOD,
            ranges=options["ranges"],
            equalise=options["equalise"],
            placement=options["placement"],
            max_drop=options["max_drop"],
            eval_images=options["eval_images"],
            measure_speed=not options["no_speed"],
            output=options["output_file"],
            force=options["force"],
        ),
        output,
    )
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
