"""``t2t-deploy evaluate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2t_deploy.cli._adapter import command_line
from t2t_deploy.cli._output import Output
from t2t_deploy.cli._results import SHOWN_UNREADABLE, fell_short
from t2t_deploy.commands import Evaluation, evaluate_artifacts, evaluate_values
from t2t_deploy.errors import counted
from t2t_deploy.types import Precision, Status

if TYPE_CHECKING:
    from rich.console import Console

    from t2t_deploy.verify import Accuracy


@command_line("evaluate", evaluate_artifacts)
def evaluate(found: Evaluation, output: Output) -> int:
    """Compare artifacts (all of the workspace if none is named) on pictures.

    Class folders that are all named by numbers mean these classes. Others must be as many as the
    model has classes, and mean them in the order of their names. Pictures without class folders
    have no labels: what counts then is agreement with the float32 reference. A model of one
    output takes two class folders, its no and its yes; several labels are in a table, --targets.

    \b
    t2t-deploy evaluate --images val/
    t2t-deploy evaluate --images photos/ artifacts/onnx/14-...-int8.onnx
    """
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
    every = [*found.references.values(), *(r.accuracy for r in found.results if r.accuracy)]
    decided = any(accuracy.decisions is not None for accuracy in every)
    measures = ("AUC", "avg. precision", "accuracy", "F1") if decided else ("top-1", "top-5")
    for heading in ("images", "batch", *measures, "agreement", "mean error", "worst"):
        table.add_column(heading, justify="right")
    table.add_column("reason")
    for name, figures in found.references.items():
        table.add_row(
            name,
            Precision.FP32.value,
            "",
            str(figures.images),
            "",
            *_measured(figures, decided=decided),
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
                *_measured(accuracy, decided=decided),
                _percent(accuracy.agreement),
                _error(accuracy.rel_l2_mean),
                _error(accuracy.rel_l2_max),
            ]
        else:
            row += [""] * (len(measures) + 5)
        table.add_row(*row, result.reason or "")
    console.print(table)
    for line in found.unreadable[:SHOWN_UNREADABLE]:
        console.print(line, markup=False)
    left = len(found.unreadable) - SHOWN_UNREADABLE
    if left > 0:
        console.print(f"and {left} more; --json names them all", markup=False)
    if found.plot is not None:
        console.print(f"confusion of classes: {found.plot}", markup=False)


def _measured(figures: Accuracy, *, decided: bool) -> list[str]:
    """Cells of what is measured against labels."""
    found = figures.decisions
    if not decided:
        return [_percent(figures.top1), _percent(figures.top5)]
    if found is None:
        return [""] * 4
    shares = found.auc, found.average_precision, found.accuracy, found.f1
    return [_percent(share) for share in shares]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.2e}"
