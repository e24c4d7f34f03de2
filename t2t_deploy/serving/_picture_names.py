"""What a picture's name tells: whether it is a URI, whether it is a picture's, how it is shown."""

from __future__ import annotations

import os
import re
from pathlib import Path

from t2t_deploy.errors import one_line, shown_path
from t2t_deploy.images import SUFFIXES

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
