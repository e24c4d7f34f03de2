"""Parts of results that several commands print."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from t2t_deploy.cli._output import Output
from t2t_deploy.errors import CheckFailed, counted, one_line, shown_path
from t2t_deploy.types import Status

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from t2t_deploy.workspace import Artifact, WorkspaceCheck


SHOWN_UNREADABLE = 10
"""Pictures without a class that are named; the rest is counted."""


def locating(artifact: Artifact) -> str:
    """How to find which layer of a failed artifact is wrong."""
    return f"which layer: t2t-deploy verify --locate {shown_path(artifact.path)}"


def table(
    columns: Iterable[str],
    rows: Iterable[Iterable[str]],
    *,
    numbers: Collection[str] = (),
    title: str | None = None,
) -> Table:
    """A table of texts. numbers: the columns that are aligned to the right."""
    from rich.table import Table  # rich is slow to import
    from rich.text import Text

    made = Table(title=title)
    for name in columns:
        made.add_column(name, justify="right" if name in numbers else "left")
    for cells in rows:
        made.add_row(*map(Text, cells))  # square brackets in a str would be read as markup
    return made


def dim(text: str) -> Text:
    """A line of less weight."""
    from rich.text import Text

    return Text(text, style="dim")


def unwrapped(text: str) -> Iterator[RenderableType]:
    """Prints a text for another program, whose lines no window's width may break."""
    click.echo(text)
    yield from ()


def some_of(names: Sequence[str]) -> Iterator[str]:
    """The first of many lines, and how many are left."""
    yield from names[:SHOWN_UNREADABLE]
    left = len(names) - SHOWN_UNREADABLE
    if left > 0:
        yield f"and {left} more; --json names them all"


def verification_line(verification: Mapping[str, Any] | None) -> str:
    """How a verification went."""
    if verification is None:
        return "verification not run: not asked for"
    status = str(verification["status"]).replace("_", " ")
    if verification["rel_l2"] is None:
        return f"verification {status}: {verification['reason']}"
    return (
        f"verification {status}: relative error {verification['rel_l2']:.2e} of "
        f"{verification['tolerance']:.0e} allowed, on "
        f"{counted(len(verification['pictures']), 'picture')}"
    )


def check_lines(found: WorkspaceCheck) -> list[str]:
    """What a check of a workspace found: a line, and one for each problem."""
    leftovers = (
        f"{len(found.leftovers)} files and folders of killed commands; t2t-deploy workspace prune "
        "removes them"
    )
    return [
        f"{counted(found.artifacts, 'artifact')}, {counted(len(found.problems), 'problem')}",
        *map(one_line, found.problems),
        *([leftovers] if found.leftovers else []),
    ]


def fail_if(check: Mapping[str, Any] | None, *, hint: str | None = None) -> int:
    """Exit status of a finished command: 3, with the reason on stderr, where its check failed.

    hint: what to do about it.
    """
    if check is None or check["status"] != Status.FAILED.value:
        return 0
    return fell_short(f"failed: {check['reason']}" + ("" if hint is None else f"; {hint}"))


def fell_short(message: str) -> int:
    """Say on stderr what a finished command's check found; returns the exit status, 3.

    The result is on stdout already, as the JSON object or the table.
    """
    Output().error(CheckFailed.__name__, message)
    return CheckFailed.exit_status
