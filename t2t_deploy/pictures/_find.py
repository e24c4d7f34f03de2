"""Which pictures are meant by files, folders and patterns, found one by one."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from t2t_deploy.errors import ImageError, shown_path
from t2t_deploy.images import SUFFIXES
from t2t_deploy.pictures._remote import is_picture, remote_pictures, scheme_of


def pictures_of(sources: Sequence[str]) -> Iterator[str]:
    """The pictures meant by ``sources``, each once, in an order that depends on their names alone.

    A folder means all pictures below it, by their suffix; a pattern (``*``, ``?``, ``[``, ``**``)
    those it matches; a URI (``s3://bucket/folder``) what is below it on that filesystem; any other
    name is a picture, whether it is there or not. Of a folder one level is kept at a time, and
    links to folders are not followed.
    Raises ImageError for a folder that cannot be listed, or a source without any picture.
    """
    if len(sources) == 1:
        yield from _pictures_of_one(sources[0])
        return
    seen = set()
    for source in sources:
        for name in _pictures_of_one(source):
            place = os.path.abspath(name) if scheme_of(name) is None else name
            if place not in seen:
                seen.add(place)
                yield name


def count_named(sources: Sequence[str]) -> int:
    """How many pictures the sources name, those named twice counted twice. Raises as above."""
    return sum(1 for source in sources for _ in _pictures_of_one(source))


def check_sources(sources: Sequence[str]) -> None:
    """Raise ImageError unless there is a picture in each source; the rest is not listed."""
    for source in sources:
        next(_pictures_of_one(source))


def _pictures_of_one(source: str) -> Iterator[str]:
    if scheme_of(source) is not None:
        yield from _at_least_one(remote_pictures(source), source, "holds")
    elif os.path.isdir(source):
        yield from _at_least_one(_below(source), source, "holds")
    elif glob.has_magic(source) and not os.path.lexists(source):
        yield from _at_least_one(_matching(source), source, "matches")
    else:
        yield source


def _at_least_one(found: Iterable[str], source: str, what: str) -> Iterator[str]:
    """The pictures found. Raises ImageError where there was none."""
    empty = True
    for name in found:
        empty = False
        yield name
    if empty:
        kinds = ", ".join(sorted(SUFFIXES))
        raise ImageError(
            f"{shown_path(Path(source))} {what} no picture ({kinds}); name a folder, a pattern or "
            "files that are pictures"
        )


def _below(folder: str) -> Iterator[str]:
    levels = [iter(_listed(folder))]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
            continue
        path, is_folder = entry
        if is_folder:
            levels.append(iter(_listed(path)))
        else:
            yield path


def _listed(folder: str) -> list[tuple[str, bool]]:
    """Pictures and folders in a folder by name: (path, whether it is a folder)."""
    try:
        with os.scandir(folder) as entries:
            found = [
                (entry.path, is_folder)
                for entry in entries
                if (is_folder := entry.is_dir(follow_symlinks=False))
                or (is_picture(entry.name) and entry.is_file())
            ]
    except OSError as err:
        raise ImageError(
            f"cannot list the folder {shown_path(Path(folder))}: {err.strerror}; make it readable "
            "or name another"
        ) from err
    return sorted(found)


def _matching(pattern: str) -> Iterator[str]:
    for name in sorted(glob.iglob(pattern, recursive=True)):
        if is_picture(name) and os.path.isfile(name):
            yield name
