"""Arguments as people write them, turned into what the pipeline takes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import TypeVar

from t2t_deploy.errors import UsageError
from t2t_deploy.workspace import Workspace

DEFAULT_WORKSPACE = "artifacts"
_VARIABLE = "T2T_DEPLOY_WORKSPACE"

AnyPath = str | os.PathLike[str]
_Word = TypeVar("_Word", bound=Enum)


def workspace_of(given: Workspace | AnyPath | None) -> Workspace:
    """A workspace; None is that of the environment variable, else ./artifacts."""
    if isinstance(given, Workspace):
        return given
    return Workspace(Path(given or os.environ.get(_VARIABLE) or DEFAULT_WORKSPACE))


def path_of(given: AnyPath | None) -> Path | None:
    """A path, or None."""
    return None if given is None else Path(given)


def paths_of(given: Iterable[AnyPath]) -> tuple[Path, ...]:
    """Paths. Raises UsageError for one path alone, whose letters would be taken for paths."""
    if isinstance(given, (str, os.PathLike)):
        raise UsageError(f"paths are {os.fspath(given)!r}; expected a list: write it in brackets")
    return tuple(Path(path) for path in given)


def word_of(kind: type[_Word], name: str, given: str | Enum) -> _Word:
    """A member of an enumeration by its value. Raises UsageError naming the others."""
    try:
        return kind(given)
    except ValueError:
        known = ", ".join(repr(member.value) for member in kind)
        raise UsageError(f"{name} is {given!r}; expected one of {known}") from None


def words_of(given: str | Sequence[str]) -> tuple[str, ...]:
    """One text, or several."""
    return (given,) if isinstance(given, str) else tuple(given)


def batch_of(given: int | str) -> int | None:
    """A fixed batch, or None for ``dynamic``. Raises UsageError."""
    if given == "dynamic":
        return None
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise UsageError(f"batch is {given!r}; expected 'dynamic' or a number from 1")
    return given


def device_of(given: int | str | None) -> int | None:
    """The ordinal of ``cuda:N``. Raises UsageError."""
    if given is None or isinstance(given, int):
        return given
    kind, _, ordinal = given.partition(":")
    if kind != "cuda" or not ordinal.isdecimal():
        raise UsageError(f"device is {given!r}; expected 'cuda:0', 'cuda:1' and so on")
    return int(ordinal)
