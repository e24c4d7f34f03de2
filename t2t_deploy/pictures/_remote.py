"""Pictures on any filesystem that pyarrow reads, named by URI: s3://, gs://, hdfs://, file://."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t2t_deploy._optional import require
from t2t_deploy.errors import ImageError, UsageError, one_line, shown_path
from t2t_deploy.images import SUFFIXES, decode_image, read_image, resize_and_crop


@dataclass(frozen=True, slots=True)
class _Place:
    """A filesystem and the path in it that a URI means."""

    files: Any
    path: str


def _place_of(uri: str) -> _Place:
    """Raises UsageError where pyarrow cannot open it."""
    fs = require("pyarrow.fs")
    try:
        files, path = fs.FileSystem.from_uri(uri)
    except Exception as err:  # pyarrow's errors depend on the filesystem
        raise UsageError(
            f"pyarrow cannot open {uri}: {_one_line(err)}; expected a URI such as "
            "s3://bucket/folder?region=eu-west-1"
        ) from err
    return _Place(files, path.rstrip("/") or path)


def remote_pictures(uri: str) -> Iterator[str]:
    """The pictures below a URI in the order of their names, one folder held at a time.

    Raises ImageError where the place cannot be listed, UsageError.
    """
    place = _place_of(uri)
    prefix = f"{scheme_of(uri)}://"
    fs = require("pyarrow.fs")
    try:
        (info,) = place.files.get_file_info([place.path])
        if info.type != fs.FileType.Directory:
            yield prefix + place.path
            return
        yield from _below(place.files, place.path, prefix)
    except (OSError, require("pyarrow").ArrowException) as err:
        raise ImageError(f"cannot list {uri}: {_one_line(err)}; check its name and rights") from err


def _below(files: Any, folder: str, prefix: str) -> Iterator[str]:
    fs = require("pyarrow.fs")
    levels = [iter(_listed(files, folder))]
    while levels:
        info = next(levels[-1], None)
        if info is None:
            levels.pop()
        elif info.type == fs.FileType.Directory:
            levels.append(iter(_listed(files, info.path)))
        elif info.type == fs.FileType.File and is_picture(info.base_name):
            yield prefix + str(info.path)


def _listed(files: Any, folder: str) -> list[Any]:
    fs = require("pyarrow.fs")
    try:
        return sorted(files.get_file_info(fs.FileSelector(folder)), key=lambda info: str(info.path))
    except UnicodeDecodeError as err:
        raise ImageError(
            f"{folder} holds a name that is no UTF-8 ({err.object!r}), which pyarrow does not "
            "read; rename it, or name a local folder by its path"
        ) from err


def pixels_of_file(name: str, size: int) -> np.ndarray:
    """A picture's file as (size, size, 3) uint8. Raises ImageError."""
    return resize_and_crop(read_image(Path(name)), size)


def reader_of(sources: Sequence[str], size: int) -> Callable[[str], np.ndarray]:
    """What reads the pictures of ``sources``, local and remote, as (size, size, 3) uint8.

    It raises ImageError. Raises UsageError where URIs of one scheme differ in their options, or
    pyarrow cannot open one.
    """
    opened: dict[str, Any] = {}
    options: dict[str, str] = {}
    for source in sources:
        scheme = scheme_of(source)
        if scheme is None:
            continue
        query = source.partition("?")[2]
        if scheme not in opened:
            opened[scheme], options[scheme] = _place_of(source).files, query
        elif options[scheme] != query:
            raise UsageError(
                f"{scheme}:// was given with the options {options[scheme]!r} and {query!r}; "
                "expected the same for all: predict them in two runs"
            )

    def read(name: str) -> np.ndarray:
        scheme = scheme_of(name)
        if scheme is None:
            return pixels_of_file(name, size)
        try:
            with opened[scheme].open_input_file(name.partition("://")[2]) as file:
                content = file.read()
        except OSError as err:
            raise ImageError(
                f"cannot read the picture {name}: {_one_line(err)}; check its name and rights"
            ) from err
        return resize_and_crop(decode_image(content, name), size)

    return read


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split()) or type(err).__name__


_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def scheme_of(name: str) -> str | None:
    """The scheme of a URI; None for a local path."""
    match = _URI.match(name)
    return None if match is None else match[1].lower()


def shown_name(name: str) -> str:
    """A picture's name for people and files: one printable line of UTF-8, a URI left as it is."""
    if scheme_of(name) is None:
        return shown_path(Path(name))
    return one_line(name)


def is_picture(name: str) -> bool:
    """Whether a file's name ends as a picture's does."""
    return os.path.splitext(name)[1].lower() in SUFFIXES
