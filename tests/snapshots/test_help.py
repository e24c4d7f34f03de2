"""Every command, its options and what it says of them are as they were written down."""

from __future__ import annotations

from collections.abc import Iterator

import click
from click.testing import CliRunner

from t2t_deploy.cli._main import cli

from .snapshot import hold


def commands(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, by what is typed."""
    yield " ".join(words), command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=words[-1])
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, name
            yield from commands(below, (*words, name))


def all_commands() -> dict[str, click.Command]:
    return dict(commands(cli, ("t2t-deploy",)))


def described(parameter: click.Parameter) -> str:
    """What a caller may give for a parameter, and what it is without, in one line."""
    told = {**parameter.to_info_dict(), "metavar": parameter.metavar}
    told |= {f"type {name}": value for name, value in told.pop("type").items()}
    # help.txt has the help; the rest is what the code calls things
    for name in ("help", "name", "opts", "secondary_opts", "type param_type"):
        told.pop(name, None)
    kept = {name: value for name, value in told.items() if value not in (None, False)}
    return ", ".join(f"{name}: {value}" for name, value in sorted(kept.items()))


def test_help_texts() -> None:
    runner = CliRunner(env={"COLUMNS": "80"})
    texts = []
    for words in all_commands():
        line = [*words.split()[1:], "--help"]
        done = runner.invoke(cli, line, prog_name="t2t-deploy")
        assert done.exit_code == 0, done.output
        texts.append(f"$ {words} --help\n{done.stdout}")
    hold("help.txt", "\n".join(texts))


def test_parameters() -> None:
    found = {
        words: {_typed(parameter): described(parameter) for parameter in command.params}
        for words, command in all_commands().items()
    }
    hold("parameters.json", found)


def _typed(parameter: click.Parameter) -> str:
    return " ".join([*parameter.opts, *parameter.secondary_opts])
