"""Arguments as people write them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from t2t_deploy.errors import UsageError

AnyPath = str | os.PathLike[str]


def path_of(given: AnyPath | None) -> Path | None:
    """A path, or None."""
    return None if given is None else Path(given)


def paths_of(given: Iterable[AnyPath]) -> tuple[Path, ...]:
    """Paths. Raises UsageError for one path alone, whose letters would be taken for paths."""
    if isinstance(given, (str, os.PathLike)):
        raise UsageError(f"paths are {os.fspath(given)!r}; expected a list: write it in brackets")
    return tuple(Path(path) for path in given)


def words_of(given: str | Sequence[str]) -> tuple[str, ...]:
    """One text, or several."""
    return (given,) if isinstance(given, str) else tuple(given)
