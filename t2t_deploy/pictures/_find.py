"""Which images are meant by files, folders, patterns and URIs, found one by one, and their pixels.

A URI (s3://, gs://, hdfs://, file://) is on any filesystem that pyarrow reads.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from t2t_deploy._optional import require
from t2t_deploy._preparation import Preparation
from t2t_deploy.errors import ImageError, UsageError, one_line, shown_path
from t2t_deploy.images import SUFFIXES, Assumed, decode_image, read_image, resize_and_crop

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")

_Entries = list[tuple[str, bool]]
"""What a folder holds, by name: (path, whether it is a folder)."""


def find_images(sources: Sequence[str]) -> Iterator[str]:
    """The images meant by ``sources``, each once, in an order that depends on their names alone.

    A folder means all images below it, by their suffix; a pattern (``*``, ``?``, ``[``, ``**``)
    those it matches; a URI (``s3://bucket/folder``) what is below it on that filesystem; any other
    name is an image, whether it is there or not. Of a folder one level is kept at a time, and
    links to folders are not followed.
    Raises ImageError for a folder that cannot be listed, or a source without any image.
    """
    if len(sources) == 1:
        yield from _images_of(sources[0])
        return
    seen = set()
    for source in sources:
        for name in _images_of(source):
            path = os.path.abspath(name) if scheme_of(name) is None else name
            if path not in seen:
                seen.add(path)
                yield name


def count_images(sources: Sequence[str]) -> int:
    """How many images the sources name, those named twice counted twice. Raises as above."""
    return sum(1 for source in sources for _ in _images_of(source))


def check_sources(sources: Sequence[str]) -> None:
    """Raise ImageError unless there is an image in each source; the rest is not listed."""
    for source in sources:
        next(_images_of(source))


def reader_of(
    sources: Sequence[str], preparation: Preparation, assumed: Assumed
) -> Callable[[str], np.ndarray]:
    """What reads the images of ``sources``, local and remote, as (H, W, channels) uint8.

    It raises ImageError. assumed: gets what their files do not say. Raises UsageError where URIs of
    one scheme differ in their options, or pyarrow cannot open one.
    """
    opened: dict[str, Any] = {}
    options: dict[str, str] = {}
    for source in sources:
        scheme = scheme_of(source)
        if scheme is None:
            continue
        query = source.partition("?")[2]
        if scheme not in opened:
            opened[scheme], options[scheme] = _open_uri(source)[0], query
        elif options[scheme] != query:
            raise UsageError(
                f"{scheme}:// was given with the options {options[scheme]!r} and {query!r}; "
                "expected the same for all: predict them in two runs"
            )

    def prepared(name: str, image: Image.Image) -> np.ndarray:
        assumed.add(shown_name(name), image)
        return resize_and_crop(image, preparation)

    def read(name: str) -> np.ndarray:
        scheme = scheme_of(name)
        if scheme is None:
            return prepared(name, read_image(Path(name), preparation))
        try:
            with opened[scheme].open_input_file(name.partition("://")[2]) as file:
                content = file.read()
        except OSError as err:
            raise ImageError(
                f"cannot read the picture {name}: {_reason(err)}; check its name and rights"
            ) from err
        return prepared(name, decode_image(content, name, preparation))

    return read


def scheme_of(name: str) -> str | None:
    """The scheme of a URI; None for a local path."""
    match = _URI.match(name)
    return None if match is None else match[1].lower()


def shown_name(name: str) -> str:
    """An image's name for people and files: one printable line of UTF-8, a URI left as it is."""
    if scheme_of(name) is None:
        return shown_path(Path(name))
    return one_line(name)


def _images_of(source: str) -> Iterator[str]:
    """The images of one source. Raises ImageError where there is none."""
    found: Iterable[str]
    what, empty = "holds", True
    if scheme_of(source) is not None:
        found = _remote_images(source)
    elif os.path.isdir(source):
        found = _below(source, _local_entries)
    elif glob.has_magic(source) and not os.path.lexists(source):
        names, what = sorted(glob.iglob(source, recursive=True)), "matches"
        found = (name for name in names if _is_image(name) and os.path.isfile(name))
    else:
        found = (source,)
    for name in found:
        empty = False
        yield name
    if empty:
        kinds = ", ".join(sorted(SUFFIXES))
        raise ImageError(
            f"{shown_path(Path(source))} {what} no picture ({kinds}); name a folder, a pattern or "
            "files that are pictures"
        )


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _below(folder: str, entries: Callable[[str], _Entries]) -> Iterator[str]:
    """The files below a folder in the order of their names; entries: of a folder on the way."""
    levels = [iter(entries(folder))]
    while levels:
        path, is_folder = next(levels[-1], ("", False))
        if not path:
            levels.pop()
        elif is_folder:
            levels.append(iter(entries(path)))
        else:
            yield path


def _local_entries(folder: str) -> _Entries:
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (entry.path, is_folder)
                for entry in entries
                if (is_folder := entry.is_dir(follow_symlinks=False))
                or (_is_image(entry.name) and entry.is_file())
            )
    except OSError as err:
        raise ImageError(
            f"cannot list the folder {shown_path(Path(folder))}: {err.strerror}; make it readable "
            "or name another"
        ) from err


def _remote_images(uri: str) -> Iterator[str]:
    """The images below a URI, or that one. Raises ImageError where it cannot be listed."""
    files, path = _open_uri(uri)
    fs = require("pyarrow.fs")

    def entries(folder: str) -> _Entries:
        try:
            return sorted(
                (info.path, info.type == fs.FileType.Directory)
                for info in files.get_file_info(fs.FileSelector(folder))
                if info.type == fs.FileType.Directory
                or (info.type == fs.FileType.File and _is_image(info.base_name))
            )
        except UnicodeDecodeError as err:
            raise ImageError(
                f"{folder} holds a name that is no UTF-8 ({err.object!r}), which pyarrow does not "
                "read; rename it, or name a local folder by its path"
            ) from err

    try:
        (info,) = files.get_file_info([path])
        is_folder = info.type == fs.FileType.Directory
        for name in _below(path, entries) if is_folder else (path,):
            yield f"{scheme_of(uri)}://{name}"
    except (OSError, require("pyarrow").ArrowException) as err:
        raise ImageError(f"cannot list {uri}: {_reason(err)}; check its name and rights") from err


def _open_uri(uri: str) -> tuple[Any, str]:
    """A filesystem and the path in it. Raises UsageError where pyarrow cannot open it."""
    fs = require("pyarrow.fs")
    try:
        files, path = fs.FileSystem.from_uri(uri)
    except Exception as err:  # pyarrow's errors depend on the filesystem
        raise UsageError(
            f"pyarrow cannot open {uri}: {_reason(err)}; expected a URI such as "
            "s3://bucket/folder?region=eu-west-1"
        ) from err
    return files, path.rstrip("/") or path


def _reason(err: Exception) -> str:
    return " ".join(str(err).split()) or type(err).__name__
