"""``t2t-deploy evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from t2t_deploy.cli._options import (
    artifacts_argument,
    common_options,
    cpu_backend_option,
    force_option,
)
from t2t_deploy.cli._output import Output
from t2t_deploy.cli._results import SHOWN_UNREADABLE, fell_short
from t2t_deploy.errors import UsageError, counted
from t2t_deploy.types import Precision, Status

if TYPE_CHECKING:
    from rich.console import Console

    from t2t_deploy.commands import Evaluation


@click.command("evaluate", short_help="Accuracy on a folder, against the reference.")
@artifacts_argument
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of class folders, or of pictures without labels.",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    help="Pictures at a time where the artifact's batch is free; default 8.",
)
@click.option(
    "--limit", type=click.IntRange(1), help="Take this many pictures, from all classes in turn."
)
@click.option(
    "--confusion",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Draw which classes are taken for which.",
)
@click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Across a Ray cluster: local (of this machine), auto or HOST:PORT.",
)
@click.option(
    "--workers", type=click.IntRange(1), help="With --ray: default one for each core there."
)
@cpu_backend_option
@force_option
@common_options
def command(artifacts: tuple[Path, ...], workspace: Any, output: Output, **options: Any) -> int:
    """Compare artifacts (all of the workspace if none is named) on pictures.

    Class folders that are all named by numbers mean these classes. Others must be as many as the
    model has classes, and mean them in the order of their names. Pictures without class folders
    have no labels: what counts then is agreement with the float32 reference.

    \b
    t2t-deploy evaluate --images val/
    t2t-deploy evaluate --images photos/ artifacts/onnx/14-...-int8.onnx
    """
    from t2t_deploy.commands import (
        DEFAULT_BATCH,
        EvaluateAcross,
        EvaluateRequest,
        evaluate_artifacts,
        evaluate_values,
    )

    across = None
    if options["ray"] is not None:
        across = EvaluateAcross(options["ray"], options["workers"])
    elif options["workers"] is not None:
        raise UsageError("--workers is about a cluster; add --ray, or leave it out")
    found = evaluate_artifacts(
        workspace,
        EvaluateRequest(
            images=options["images"],
            artifacts=artifacts,
            batch=options["batch"] or DEFAULT_BATCH,
            limit=options["limit"],
            confusion=options["confusion"],
            backend=options["backend"],
            force=options["force"],
            ray=across,
        ),
        output,
    )
    output.result(evaluate_values(found), lambda console: _show(console, found))
    if not found.failed:
        return 0
    short = [r.artifact.path.name for r in found.results if r.status is Status.FAILED]
    what = (
        [f"{counted(len(found.unreadable), 'picture')} cannot be read"] if found.unreadable else []
    )
    what += [f"failed: {', '.join(short)}"] if short else []
    return fell_short("; ".join(what))


def _show(console: Console, found: Evaluation) -> None:
    from rich.table import Table

    table = Table()
    for heading in ("artifact", "precision", "status"):
        table.add_column(heading)
    for heading in ("images", "batch", "top-1", "top-5", "agreement", "mean error", "worst"):
        table.add_column(heading, justify="right")
    table.add_column("reason")
    for name, figures in found.references.items():
        table.add_row(
            name,
            Precision.FP32.value,
            "",
            str(figures.images),
            "",
            _percent(figures.top1),
            _percent(figures.top5),
        )
    for result in found.results:
        manifest, accuracy = result.artifact.manifest, result.accuracy
        row = [
            result.artifact.path.name,
            "" if manifest is None else manifest.precision.value,
            result.status.value,
        ]
        if accuracy is not None:
            row += [
                str(accuracy.images),
                str(result.batch),
                _percent(accuracy.top1),
                _percent(accuracy.top5),
                _percent(accuracy.agreement),
                _error(accuracy.rel_l2_mean),
                _error(accuracy.rel_l2_max),
            ]
        else:
            row += [""] * 7
        table.add_row(*row, result.reason or "")
    console.print(table)
    for line in found.unreadable[:SHOWN_UNREADABLE]:
        console.print(line, markup=False)
    left = len(found.unreadable) - SHOWN_UNREADABLE
    if left > 0:
        console.print(f"and {left} more; --json names them all", markup=False)
    if found.plot is not None:
        console.print(f"confusion of classes: {found.plot}", markup=False)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.2e}"
