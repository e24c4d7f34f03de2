"""``t2t-deploy package``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from t2t_deploy.cli._options import artifact_argument, common_options, force_option
from t2t_deploy.cli._output import Output

if TYPE_CHECKING:
    from rich.console import Console


@click.command("package", short_help="A model repository for Triton Inference Server.")
@artifact_argument
@click.option(
    "--triton",
    "repository",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Folder of models: the server's --model-repository.",
)
@click.option(
    "--format",
    "serving_format",
    type=click.Choice(["auto", "tensorrt", "onnxruntime", "python"]),
    default="auto",
    show_default=True,
    help="Triton's backend; auto: tensorrt for engines, onnxruntime for ONNX files.",
)
@click.option("--name", help="Of the model; default t2t_vit_VARIANT_PRECISION.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Names of the classes, one a line.",
)
@click.option("--top", type=click.IntRange(1), help="Classes the ensemble tells; default 5.")
@click.option(
    "--max-batch", type=click.IntRange(1), help="Pictures at a time; default an engine's, or 32."
)
@click.option(
    "--accelerator",
    type=click.Choice(["none", "cuda", "tensorrt", "openvino"]),
    help="Within Triton's ONNX Runtime; default by the target the graph is made for.",
)
@click.option(
    "--queue-delay",
    "queue_delay_us",
    type=click.IntRange(0),
    metavar="MICROSECONDS",
    help="How long a request may wait for others; default 1000.",
)
@click.option("--instances", type=click.IntRange(1), help="Of the model; default 1.")
@click.option(
    "--preprocess-instances",
    type=click.IntRange(1),
    help="Processes that read pictures; default 1.",
)
@click.option(
    "--threads", type=click.IntRange(0), help="Of ONNX Runtime in each instance; default per core."
)
@force_option
@common_options
def command(artifact: Path | None, workspace: Any, output: Output, **options: Any) -> None:
    """Write a model repository: the model, and an ensemble that takes picture files.

    Without ARTIFACT the newest one is taken. Folders made by this command are replaced, others
    never.

    \b
    t2t-deploy package --triton models/
    t2t-deploy package artifacts/onnx/14-....onnx --triton models/
    """
    from t2t_deploy.commands import PackageRequest, package_artifact, package_values
    from t2t_deploy.serving.triton import Accelerator, ServingFormat

    serving_format = options.pop("serving_format")
    accelerator = options.pop("accelerator")
    request = PackageRequest(
        artifact=artifact,
        format=None if serving_format == "auto" else ServingFormat(serving_format),
        accelerator=None if accelerator is None else Accelerator(accelerator),
        **{name: value for name, value in options.items() if value is not None},
    )
    package = package_artifact(workspace, request, output)
    values = package_values(package, request.repository)

    def show(console: Console) -> None:
        model = values["model"]
        console.print(
            f"{model['name']}: {model['backend']}, {model['instances']}, "
            f"batches up to {model['max_batch_size']}",
            markup=False,
        )
        console.print(f"{values['ensemble']['name']}: picture files -> classes", markup=False)
        for folder in package.folders:
            console.print(str(folder), markup=False)
        console.print(f"tritonserver --model-repository={request.repository}", markup=False)

    output.result(values, show)
