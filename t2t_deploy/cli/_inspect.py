"""``t2t-deploy inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from t2t_deploy.cli._options import common_options
from t2t_deploy.cli._output import Output

if TYPE_CHECKING:
    from rich.console import Console


@click.command("inspect", short_help="What is in an ONNX file or an engine.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("other", required=False, type=click.Path(path_type=Path))
@common_options
def command(artifact: Path, other: Path | None, workspace: Any, output: Output) -> None:
    """Show what is in an ONNX file or an engine; two artifacts side by side.

    \b
    t2t-deploy inspect artifacts/engines/14-....engine
    t2t-deploy inspect a.onnx b.onnx
    """
    from t2t_deploy.pipeline import inspect_artifact

    chosen = [artifact] if other is None else [artifact, other]
    summaries = [inspect_artifact(workspace, path) for path in chosen]

    def show(console: Console) -> None:
        from rich.table import Table

        columns = [flatten(summary) for summary in summaries]
        table = Table("", *(Path(summary["path"]).name for summary in summaries))
        for key in dict.fromkeys(key for column in columns for key in column):
            table.add_row(key, *(column.get(key, "") for column in columns))
        console.print(table)

    output.result({"artifacts": summaries}, show)


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
