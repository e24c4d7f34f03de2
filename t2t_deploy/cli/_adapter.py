"""From a command's signature to what the command line takes.

Every option is declared once, where the command is; here it gets click's words. What all commands
take (`--workspace`, `--json` and so on) is added here as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from t2t_deploy._options import FLAG, Kind, Parameter, parameters
from t2t_deploy.cli._output import Output
from t2t_deploy.errors import UsageError

DEFAULT_WORKSPACE = Path("artifacts")

_Result = TypeVar("_Result")
Show = Callable[[Any, Output], int | None]
Run = Callable[[dict[str, Any], dict[str, Any]], Any]


def command_line(
    name: str,
    function: Callable[..., Any],
    *,
    extra: Mapping[str, Sequence[click.Parameter]] | None = None,
    run: Run | None = None,
) -> Callable[[Show], click.Command]:
    """Turn what shows a command's result into the command; its docstring is the help.

    It gets the result of ``function``, and returns the exit status where that is not 0. extra:
    parameters that only the command line has, by the name of the one that they stand before. run:
    called with the function's arguments and the extra ones instead of the function, to choose
    another.
    """
    known = parameters(function)
    params: list[click.Parameter] = []
    for parameter in known.values():
        if extra and parameter.name in extra:
            params += extra[parameter.name]
        params += click_parameters(parameter)
    own = {one.name for some in (extra or {}).values() for one in some}

    def decorated(show: Show) -> click.Command:
        def call(workspace: Any, shown_by: Output, /, **values: Any) -> int | None:
            given = _given(known, {k: v for k, v in values.items() if k not in own})
            given |= {"workspace": workspace, "progress": shown_by}
            beside = {k: v for k, v in values.items() if k in own}
            try:
                found = function(**given) if run is None else run(given, beside)
            except (KeyboardInterrupt, SystemExit) as err:
                partial = getattr(err, "partial", None)  # as `benchmark` says
                if partial is not None:
                    show(partial, shown_by)
                    err.has_result = True  # type: ignore[union-attr]
                raise
            return show(found, shown_by)

        return plain_command(name, params, show.__doc__)(call)

    return decorated


def plain_command(
    name: str, params: Sequence[click.Parameter] = (), doc: str | None = None
) -> Callable[[Callable[..., int | None]], click.Command]:
    """A command from its parameters; a workspace and an `Output` come before them."""

    def decorated(work: Callable[..., int | None]) -> click.Command:
        def callback(
            workspace: Path, no_wait: bool, verbose: int, quiet: bool, as_json: bool, **values: Any
        ) -> int | None:
            from t2t_deploy.workspace import LockPolicy, Workspace

            output = Output(as_json=as_json, verbosity=-1 if quiet else verbose)
            command = click.get_current_context().command_path
            lock_policy = LockPolicy(wait=not no_wait, command=command, say=output.note)
            try:
                opened = Workspace(workspace, lock_policy)
                return work(opened, output, **values)
            finally:
                output.finish()

        return _Command(
            name, params=[*params, *_common()], callback=callback, help=doc or work.__doc__
        )

    return decorated


class HelpNames:
    """Answers -h and --help whoever asks first: click keeps the names of the first context."""

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        """The names."""
        return ["-h", "--help"]


class _Command(HelpNames, click.Command):
    """A command whose help has both names."""


def _common() -> list[click.Parameter]:
    """What every command takes."""
    return [
        click.Option(
            ["--workspace"],
            type=click.Path(path_type=Path, file_okay=False),
            default=DEFAULT_WORKSPACE,
            envvar="T2T_DEPLOY_WORKSPACE",
            show_default=True,
            show_envvar=True,
            help="Folder of artifacts.",
        ),
        click.Option(
            ["--no-wait"], is_flag=True, help="Fail where another command is busy with the same."
        ),
        click.Option(["-v", "--verbose"], count=True, help="Say more."),
        click.Option(["-q", "--quiet"], is_flag=True, help="Say nothing but results and errors."),
        click.Option(["as_json", "--json"], is_flag=True, help="One JSON object on stdout."),
    ]


def click_parameters(parameter: Parameter) -> list[click.Parameter]:
    """What the command line takes for a parameter of a command."""
    opt, kind = parameter.opt, parameter.kind
    if parameter.positional:
        return [
            click.Argument(
                [parameter.name],
                required=parameter.required,
                nargs=-1 if kind.several else 1,
                type=_click_type(kind),
                metavar=opt.metavar,
            )
        ]
    if opt.each is not None:  # a flag for each of the names
        return [
            click.Option(
                [parameter.name, f"--{name}"], flag_value=name, multiple=True, help=opt.each(name)
            )
            for name in kind.names
        ]
    words = [parameter.name, *(opt.flags or (f"--{parameter.option}",))]
    if kind is FLAG:
        if parameter.default is True:
            return [click.Option(words, flag_value=False, default=True, help=opt.help)]
        return [click.Option(words, is_flag=True, help=opt.help)]
    more: dict[str, Any] = {}
    if opt.bare is not None:
        more |= {"is_flag": False, "flag_value": opt.bare}
    if opt.shown is not None:
        more |= {"default": opt.shown, "show_default": True}
    if opt.completions is not None:
        complete = opt.completions
        more["shell_complete"] = lambda ctx, param, word: [
            CompletionItem(found) for found in complete(word)
        ]
    return [
        click.Option(
            words,
            type=_click_type(kind),
            multiple=kind.several,
            required=parameter.required,
            metavar=opt.metavar or ("DIR" if kind.path == "folder" else None),
            help=opt.help,
            **more,
        )
    ]


def _click_type(kind: Kind) -> click.ParamType[Any]:
    if kind.path is not None:
        return click.Path(
            path_type=Path, file_okay=kind.path != "folder", dir_okay=kind.path != "file"
        )
    if kind.names:
        return click.Choice(kind.names)
    if kind.bounds is not None:
        return click.IntRange(*kind.bounds)
    if kind.metavar is not None:
        return _Words(kind)
    plain: dict[Any, click.ParamType[Any]] = {int: click.INT, float: click.FLOAT}
    return plain.get(kind.text, click.STRING)


class _Words(click.ParamType[Any]):
    """A kind whose values have a spelling of their own."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.name = str(kind.metavar)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check the word; the command reads it. Fails as a usage error."""
        given = self.kind.text(value) if isinstance(value, str) else value
        try:
            self.kind.read(given)
        except (ValueError, OverflowError):
            self.fail(f"{value!r}; expected {self.kind.expected}", param, ctx)
        return given


def _given(known: Mapping[str, Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that were given; what was left out is the function's own default."""
    given: dict[str, Any] = {}
    for name, value in values.items():
        parameter = known[name]
        if parameter.opt.each is not None:
            words = list(dict.fromkeys(value))
            if len(words) > 1:
                flags = " and ".join(f"--{word}" for word in words)
                raise UsageError(
                    f"{flags} were given together; an engine has one precision: choose one"
                )
            value = words[0] if words else None
        if value is not None and value != ():
            given[name] = value
    return given
