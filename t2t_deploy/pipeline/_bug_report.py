"""What a bug report needs to know of a machine, without what it need not: names and places."""

from __future__ import annotations

import getpass
import json
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Whole absolute paths, of either kind of system; a slash inside a word or a URL begins none.
_PATH = re.compile(
    r"(?<![\w./\\~>-])(?:/[^/\s'\"<>|:;,]+){2,}"  # /home/ann/x: one part alone may be a word, /s
    r"|\b[A-Za-z]:\\[^\s'\"<>|:;,]+"
)
_LAST_PART = re.compile(r"[/\\]")
_BACKEND_FLAGS = ("importable", "device", "builds", "runs")


def bug_report(found: Mapping[str, Any]) -> str:
    """`examine_machine`'s answer as Markdown for an issue; paths, user and host left out."""
    backends = [
        f"| {backend['name']} | {backend['version'] or '-'} | "
        + " | ".join(_flag(backend[name]) for name in _BACKEND_FLAGS)
        + " |"
        for backend in found["backends"]
    ]
    lines = [
        f"t2t-deploy {found['t2t_deploy']}, Python {found['python']}, {found['platform']}, "
        f"CUDA device {found['cuda_device'] or 'none'}",
        "",
        "| backend | version | imports | device | builds | runs |",
        "|---|---|---|---|---|---|",
        *backends,
        "",
        "<details><summary>All that doctor found</summary>",
        "",
        "```json",
        json.dumps(found, indent=1, sort_keys=True),
        "```",
        "",
        "</details>",
    ]
    return without_places("\n".join(lines))


def without_places(text: str) -> str:
    """The text with absolute paths cut to their last part, and user and host named as such."""
    # by name first: only there is it known where a path with spaces ends
    for place, stand_in in ((Path.cwd(), "<cwd>"), (Path.home(), "~"), (sys.prefix, "<python>")):
        if len(Path(place).parts) > 1:
            text = text.replace(str(place), stand_in)
    text = _PATH.sub(lambda match: f"<path>/{_LAST_PART.split(match[0])[-1]}", text)
    for name, stand_in in ((_user(), "<user>"), (platform.node(), "<host>")):
        if name:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", stand_in, text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        return ""


def _flag(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"
