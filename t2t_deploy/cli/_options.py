"""Options that every command takes, and parameter types."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from t2t_deploy.cli._output import Output

DEFAULT_WORKSPACE = Path("artifacts")


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what every one takes; it receives ``workspace`` and ``output``."""

    @click.option(
        "--workspace",
        type=click.Path(path_type=Path, file_okay=False),
        default=DEFAULT_WORKSPACE,
        envvar="T2T_DEPLOY_WORKSPACE",
        show_default=True,
        show_envvar=True,
        help="Folder of artifacts.",
    )
    @click.option(
        "--no-wait", is_flag=True, help="Fail where another command is busy with the same."
    )
    @click.option("-v", "--verbose", count=True, help="Say more.")
    @click.option("-q", "--quiet", is_flag=True, help="Say nothing but results and errors.")
    @click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        workspace: Path,
        no_wait: bool,
        verbose: int,
        quiet: bool,
        as_json: bool,
        **options: Any,
    ) -> Any:
        from t2t_deploy.workspace import LockPolicy, Workspace

        output = Output(as_json=as_json, verbosity=-1 if quiet else verbose)
        name = click.get_current_context().command_path
        lock_policy = LockPolicy(wait=not no_wait, command=name, say=output.note)
        opened = Workspace(workspace, lock_policy)
        try:
            return command(*args, workspace=opened, output=output, **options)
        finally:
            output.finish()

    return wrapped


class BatchType(click.ParamType[Any]):
    """``dynamic`` or a number of pictures; dynamic is None."""

    name = "dynamic|N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """Read the value. Fails as a usage error."""
        if value is None or isinstance(value, int):
            return value
        if value == "dynamic":
            return None
        if value.isdecimal() and int(value) >= 1:
            return int(value)
        self.fail(f"{value!r} is no batch; expected 'dynamic' or a number from 1", param, ctx)


class NumbersType(click.ParamType[Any]):
    """Numbers from 1, separated by commas."""

    name = "N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Read the value. Fails as a usage error."""
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in value.split(",")]
        if not all(word.isdecimal() and int(word) >= 1 for word in words):
            self.fail(f"{value!r}; expected numbers from 1, as in 1,8", param, ctx)
        return tuple(dict.fromkeys(int(word) for word in words))


class DeviceType(click.ParamType[Any]):
    """``cuda:N``; the value is N."""

    name = "cuda:N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """Read the value. Fails as a usage error."""
        if value is None or isinstance(value, int):
            return value
        kind, _, ordinal = value.partition(":")
        if kind != "cuda" or not ordinal.isdecimal():
            self.fail(f"{value!r} is no device; expected cuda:0, cuda:1 and so on", param, ctx)
        return int(ordinal)


def calibration_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --count, --method and --no-equalise; it receives ``equalise``."""
    for option in (
        click.option(
            "--no-equalise",
            "equalise",
            flag_value=False,
            default=True,
            help="Leave channels of very different size as they are.",
        ),
        click.option(
            "--method",
            type=click.Choice(["minmax", "percentile", "entropy", "mse"]),
            help="How a range is chosen; default minmax.",
        ),
        click.option(
            "--count", type=click.IntRange(1), help="Take up to this many pictures; default 512."
        ),
    ):
        command = option(command)
    return command


artifact_argument = click.argument(
    "artifact", required=False, type=click.Path(path_type=Path), default=None
)
artifacts_argument = click.argument("artifacts", nargs=-1, type=click.Path(path_type=Path))
cpu_backend_option = click.option(
    "--backend", metavar="ort-cpu|openvino", help="Runtime of ONNX files; default ort-cpu."
)
force_option = click.option(
    "--force", is_flag=True, help="Use an artifact although a check on it failed."
)
trust_option = click.option(
    "--trust", is_flag=True, help="Load an engine without manifest: it is code, and runs."
)
output_option = click.option(
    "-o",
    "output_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write here instead of the workspace.",
)
