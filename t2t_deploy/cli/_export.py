"""``t2t-deploy export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from t2t_deploy.cli._options import BatchType, common_options, output_option
from t2t_deploy.cli._output import Output
from t2t_deploy.cli._results import fail_if, locating, show_verification
from t2t_deploy.types import GraphIO, Precision, Tail, Target

if TYPE_CHECKING:
    from rich.console import Console


def _variants(context: click.Context, parameter: click.Parameter, word: str) -> list[str]:
    """What a shell may complete ``--variant`` to."""
    from t2t_deploy.model import VARIANTS

    return [name for name in VARIANTS if name.startswith(word)]


@click.command("export", short_help="Checkpoint -> verified ONNX.")
@click.option(
    "--variant",
    metavar="V",
    shell_complete=_variants,
    help="A released variant; see 't2t-deploy variants'.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="TOML file with a model's own dimensions.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Weights: .pth.tar, .pth or .safetensors. Without it: seeded random weights.",
)
@click.option("--num-classes", type=click.IntRange(1), help="Classes; default the checkpoint's.")
@click.option("--image-size", type=click.IntRange(1), help="Pixels; default the checkpoint's.")
@click.option("--batch", type=BatchType(), default="dynamic", show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="Arithmetic; inputs and outputs stay float32.",
)
@click.option(
    "--target",
    type=click.Choice([target.value for target in Target]),
    default="portable",
    show_default=True,
    help="What the graph is made for.",
)
@click.option(
    "--soft-split",
    default="auto",
    show_default=True,
    help="unfold, conv, folded, centred or auto; one, or three separated by commas.",
)
@click.option("--performer", default="auto", show_default=True, help="plain, stable or auto.")
@click.option(
    "--embed-preprocess",
    is_flag=True,
    help="Take the picture's pixels, (batch, S, S, 3) uint8, and normalise inside the graph.",
)
@click.option(
    "--tail",
    type=click.Choice([tail.value for tail in Tail]),
    default="logits",
    show_default=True,
    help="softmax: all probabilities; topk: the five largest and their classes.",
)
@click.option("--opset", type=int, help="ONNX opset; default 18.")
@click.option(
    "--compare",
    is_flag=True,
    help="Write nothing; show what every combination of strategies costs and loses.",
)
@output_option
@common_options
def command(workspace: Any, output: Output, **options: Any) -> int:
    """Export a checkpoint to ONNX and verify the file against the reference.

    \b
    t2t-deploy export --variant 14
    t2t-deploy export --checkpoint 81.5_T2T_ViT_14.pth.tar --variant 14
    t2t-deploy export --checkpoint tuned.pth --image-size 384 --batch 1
    t2t-deploy export --variant 14 --embed-preprocess --tail topk
    t2t-deploy export --variant 14 --precision fp16 --target tensorrt --compare
    """
    from t2t_deploy.commands import ExportRequest, export_model, export_values

    request = ExportRequest(
        variant=options["variant"],
        config_file=options["config_file"],
        checkpoint=options["checkpoint"],
        num_classes=options["num_classes"],
        image_size=options["image_size"],
        batch=options["batch"],
        precision=Precision(options["precision"]),
        target=Target(options["target"]),
        soft_split=options["soft_split"],
        performer=options["performer"],
        opset=options["opset"],
        graph_io=GraphIO(options["embed_preprocess"], Tail(options["tail"])),
        output=options["output_file"],
    )
    if options["compare"]:
        from t2t_deploy.cli._compare import compare

        return compare(workspace, request, output)
    artifact = export_model(workspace, request, output)
    manifest = artifact.require_manifest()

    def show(console: Console) -> None:
        show_verification(console, manifest.verification)
        console.print(str(artifact.path), markup=False)

    output.result(export_values(artifact), show)
    return fail_if(manifest.verification, hint=locating(artifact))
