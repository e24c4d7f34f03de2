"""The man page t2t-deploy.1, from what the commands say of themselves.

    python tools/man_page.py > docs/man/t2t-deploy.1

It is committed, so that building a wheel imports nothing; a test holds it against the code.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from t2t_deploy import __version__
from t2t_deploy.cli._main import cli

NAME = "t2t-deploy"
# what `main` promises of each command
STATUSES = {
    "0": "Done.",
    "1": "An error that one line on standard error explains.",
    "2": "Wrong usage.",
    "3": "Done, but a check fell short.",
    "129, 130, 143": "Ended by SIGHUP, SIGINT (Ctrl-C) or SIGTERM.",
}
_VERBATIM = "\b"


def page() -> str:
    """The whole page, in the man macros of groff and mandoc."""
    context = click.Context(cli, info_name=NAME, **cli.context_settings)
    first, *rest = paragraphs(cli)
    lines = [
        f'.TH T2T-DEPLOY 1 "" "{NAME} {__version__}" "User Commands"',
        ".SH NAME",
        f"{escaped(NAME)} \\- {escaped(first[0].lower() + first[1:].rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {escaped(NAME)}",
        escaped("COMMAND [OPTIONS] [ARGUMENTS]..."),
        ".SH DESCRIPTION",
        *told(rest),
        ".SH OPTIONS",
        *options(context),
        ".SH COMMANDS",
        *commands(context),
        ".SH EXIT STATUS",
    ]
    for status, meaning in STATUSES.items():
        lines += [".TP", f".B {status}", escaped(meaning)]
    return "\n".join(lines) + "\n"


def commands(parent: click.Context) -> Iterator[str]:
    """A section for each command below a group, groups of groups included."""
    group = parent.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        assert command is not None, name
        if command.hidden:
            continue
        context = click.Context(command, info_name=name, parent=parent)
        usage = " ".join(command.collect_usage_pieces(context))
        yield f'.SS "{escaped(f"{context.command_path} {usage}")}"'
        yield from told(paragraphs(command))
        yield from options(context)
        if isinstance(command, click.Group):
            yield from commands(context)


def paragraphs(command: click.Command) -> list[str]:
    """A command's help, apart at blank lines."""
    return inspect.cleandoc(command.help or "").split("\n\n")


def told(texts: list[str]) -> Iterator[str]:
    """Paragraphs; those that click leaves as they are stay so here."""
    for text in texts:
        yield ".PP"
        if text.startswith(_VERBATIM):
            yield from (".nf", escaped(text.removeprefix(_VERBATIM).strip("\n")), ".fi")
        else:
            yield escaped(" ".join(text.split()))


def options(context: click.Context) -> Iterator[str]:
    """The options of a command, each with its help."""
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None:
            names, about = record
            yield from (".TP", f".B {escaped(names)}", escaped(" ".join(about.split())))


def escaped(text: str) -> str:
    """Text that roff takes as text: dashes stay dashes, no line is a request."""
    plain = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return re.sub(r"^(?=[.'])", r"\\&", plain, flags=re.MULTILINE)


if __name__ == "__main__":
    print(page(), end="")
