"""``t2t-deploy inspect``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from t2t_deploy._options import parameters
from t2t_deploy.cli._adapter import click_parameters, plain_command
from t2t_deploy.cli._output import Output
from t2t_deploy.commands import DrawnFeatures, draw_features, inspect_artifact
from t2t_deploy.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console


_DRAWN = parameters(draw_features)
_PARAMETERS = [
    click.Argument(["artifact"], type=click.Path(path_type=Path)),
    click.Argument(["other"], required=False, type=click.Path(path_type=Path)),
    *click_parameters(dataclasses.replace(_DRAWN["features"], default=None)),
    *click_parameters(_DRAWN["plot"]),
]


@plain_command("inspect", _PARAMETERS)
def inspect(
    workspace: Any,
    output: Output,
    artifact: Path,
    other: Path | None,
    features: Path | None,
    plot: Path | None,
) -> None:
    """Show what is in an ONNX file or an engine; two artifacts side by side.

    \b
    t2t-deploy inspect artifacts/engines/14-....engine
    t2t-deploy inspect a.onnx b.onnx
    t2t-deploy inspect a.onnx a-int8.onnx --features cat.jpg
    """
    if plot is not None and features is None:
        raise UsageError("--plot draws the token maps of --features; give --features IMAGE too")
    chosen = [artifact] if other is None else [artifact, other]
    drawn = None
    if features is not None:
        drawn = draw_features(
            chosen, features=features, plot=plot, workspace=workspace, progress=output
        )
    summaries = [inspect_artifact(path, workspace=workspace) for path in chosen]

    def show(console: Console) -> None:
        from rich.table import Table

        columns = [flatten(summary) for summary in summaries]
        table = Table("", *(Path(summary["path"]).name for summary in summaries))
        for key in dict.fromkeys(key for column in columns for key in column):
            table.add_row(key, *(column.get(key, "") for column in columns))
        console.print(table)
        if drawn is not None:
            _show_features(console, drawn)

    values: dict[str, Any] = {"artifacts": summaries}
    if drawn is not None:
        values["features"] = drawn.to_dict()
    output.result(values, show)


def _show_features(console: Console, drawn: DrawnFeatures) -> None:
    from rich.table import Table

    features = drawn.features
    table = Table("relative error against float64", *(column.name for column in features.columns))
    for row, stage in enumerate(features.stages):
        seen = [column.seen[row] for column in features.columns]
        table.add_row(
            stage.title,
            *(one.note or "" if one.rel_l2 is None else f"{one.rel_l2:.2e}" for one in seen),
        )
    console.print(table)
    console.print(f"token maps: {drawn.plot}", markup=False)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as dotted keys and texts, in order; empty ones are left out."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for index, item in enumerate(value):
                flat |= flatten(item, f"{name}.{index}.")
        elif value not in (None, "", [], {}):
            shown = value if not isinstance(value, list) else ", ".join(map(str, value))
            flat[name] = f"{shown:.3g}" if isinstance(shown, float) else str(shown)
    return flat
