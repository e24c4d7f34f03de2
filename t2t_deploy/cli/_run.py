"""``t2t-deploy run``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from t2t_deploy.cli._adapter import plain_command
from t2t_deploy.cli._output import Output, table
from t2t_deploy.errors import CheckFailed, RecipeError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from t2t_deploy.recipe import RecipeRun


_PARAMS = (
    click.Argument(
        ["recipe"], required=False, type=click.Path(path_type=Path), metavar="RECIPE.toml"
    ),
    click.Option(
        ["--example"], is_flag=True, help="Write a commented recipe instead, to stdout or -o."
    ),
    click.Option(
        ["output_file", "-o"],
        type=click.Path(path_type=Path, dir_okay=False),
        help="With --example: write it here, if nothing is there.",
    ),
)


@plain_command("run", _PARAMS)
def run(
    workspace: Any, output: Output, recipe: Path | None, example: bool, output_file: Path | None
) -> int:
    """Follow a recipe: export, quantize, build, verify, evaluate, bench, report, package.

    A step whose inputs, options, tools and files are as they were is skipped.

    \b
    t2t-deploy run --example -o recipe.toml
    t2t-deploy run recipe.toml
    """
    if example:
        if recipe is not None:
            raise UsageError("--example writes a recipe and follows none; leave one of them out")
        return _write_example(output_file, output)
    if recipe is None:
        raise UsageError("no recipe was named; expected RECIPE.toml, or --example to write one")
    if output_file is not None:
        raise UsageError("-o is for --example; a recipe itself says where things go, with output")
    from t2t_deploy.recipe import follow_recipe, load_recipe
    from t2t_deploy.workspace import Workspace

    followed = load_recipe(recipe)
    source = click.get_current_context().get_parameter_source("workspace")
    if followed.workspace is not None and source is ParameterSource.DEFAULT:
        workspace = Workspace(followed.workspace, workspace.lock_policy)
    done = follow_recipe(workspace, followed, output)
    output.result(done.to_dict(), _statuses(done))
    failed = [step for step in done.steps if step.exit_status]
    if failed:
        short = done.exit_status == CheckFailed.exit_status
        kind = CheckFailed.__name__ if short else RecipeError.__name__
        names = "; ".join(f"{step.step} ({step.reason})" for step in failed)
        Output().error(kind, f"failed: {names}")
    return done.exit_status


def _write_example(file: Path | None, output: Output) -> int:
    from t2t_deploy.recipe import example_recipe, write_example

    text = example_recipe()
    if file is not None:
        write_example(file)
    values = {"recipe": None if file is None else str(file), "text": text}
    output.result(values, [text.rstrip("\n") if file is None else f"written: {file}"])
    return 0


def _statuses(done: RecipeRun) -> Iterator[RenderableType]:
    rows = ((step.step, step.status.value.replace("_", " "), step.reason) for step in done.steps)
    yield table(("step", "status", "why"), rows)
