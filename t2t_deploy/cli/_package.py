"""``t2t-deploy package``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2t_deploy.cli._adapter import command_line
from t2t_deploy.cli._output import Output
from t2t_deploy.commands import Package, package_artifact, package_values

if TYPE_CHECKING:
    from rich.console import Console


@command_line("package", package_artifact)
def command(package: Package, output: Output) -> None:
    """Write a model repository: the model, and an ensemble that takes picture files.

    Without ARTIFACT the newest one is taken. Folders made by this command are replaced, others
    never.

    \b
    t2t-deploy package --triton models/
    t2t-deploy package artifacts/onnx/14-....onnx --triton models/
    """
    values = package_values(package)

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
        console.print(f"tritonserver --model-repository={values['repository']}", markup=False)

    output.result(values, show)
