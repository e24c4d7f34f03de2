"""Limits of size and depth for untrusted files, checked before a reader gets them."""

from __future__ import annotations

import difflib
import json
import os
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from t2t_deploy.errors import one_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_CONFIG_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 16 << 20
MAX_LABELS_BYTES = 16 << 20
MAX_BENCH_BYTES = 256 << 20
MAX_HEADER_BYTES = 8 << 20
"""Of a safetensors file; a tensor takes about 100 bytes."""

DAMAGED = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What reading a file of our own raises where it is damaged, or no such file."""

_SHOWN = 60
_LONGEST_NAME = 100
"""Longest name to search typos of."""


def read_small_file(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises OSError where it cannot be read, ValueError where it is larger, or a pipe or a
    device, which may never end.
    """
    # else opening a pipe without a writer would block
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_RDONLY | flags)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is a pipe or a device, not a file")
        content = bytearray()
        while chunk := file.read(limit + 1 - len(content)):
            content += chunk
        if len(content) > limit:
            raise ValueError(f"it is larger than {limit >> 20} MiB")
        return bytes(content)


def json_from_file(path: Path, limit: int) -> Any:
    """A JSON file's content. Raises OSError, ValueError."""
    text = read_small_file(path, limit).decode("utf-8")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def tables_of(toml: bytes) -> dict[str, Any]:
    """What a TOML file says. Raises ValueError, RecursionError."""
    return tomllib.loads(toml.decode("utf-8"))


def check_safetensors(path: Path) -> None:
    """Refuse a safetensors file whose header claims too much, or more than the file has.

    Raises OSError, ValueError. The library checks the content of the header.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) < 8:
        raise ValueError(f"it has {size} bytes, fewer than the length of a header takes")
    (header,) = struct.unpack("<Q", start)
    if header > size - 8:
        raise ValueError(f"its header claims {header} bytes, and the file has {size}")
    if header > MAX_HEADER_BYTES:
        raise ValueError(
            f"its header has {header} bytes; expected at most {MAX_HEADER_BYTES >> 20} MiB"
        )


def first_line(err: Exception) -> str:
    """An error's text on one short line; its name if it has no text.

    It may quote a file, so unprintable characters are escaped.
    """
    line = (str(err).strip().splitlines() or [type(err).__name__])[0][: 4 * _SHOWN]
    return one_line(line)


def shortened(value: object) -> str:
    """A value of a file for a message: printable, on one short line."""
    text = repr(value[:_SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= 2 * _SHOWN else f"{text[: 2 * _SHOWN]}..."


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """A question with the known word nearest to a mistyped one; None if none is near."""
    near = difflib.get_close_matches(name[:_LONGEST_NAME], known, n=1)
    return f"did you mean {near[0]!r}?" if near else None
