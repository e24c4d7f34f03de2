"""Commands and what they print, as pages of the documentation show them.

A fence opened by ```` ```console ```` holds lines `$ COMMAND`, each followed by what it prints on
stdout and stderr; a command that ends in a backslash goes on in the next line. The long form of a
fence adds classes: ```` ``` {.console .exit-1} ````.

* `exit-N`: every command of the fence ends with that exit status instead of 0;
* `slow`: run in the slow lane only; `needs-rtx`: where TensorRT-RTX is; `needs-triton`: beside a
  server only;
* `not-run-here`: not run at all, which a reader sees too.

A fence of another language with `title="NAME"` is a file that following commands find under that
name. In what is printed, `…` stands for any text within a line, a line of `…` alone for any number
of lines, runs of blanks for any runs of blanks.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ANY = "…"
_FENCE = re.compile(
    r"^(?P<indent> *)```+ *(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=indent)```+ *$",
    re.MULTILINE | re.DOTALL,
)
# a command, of several lines where they end in a backslash, and what it prints
_COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*(?<!\\))\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
_CLASS = re.compile(r"\.([\w-]+)")
_TITLE = re.compile(r'title="([^"]+)"')
_EXIT = re.compile(r"exit-(\d+)")
_KNOWN = {"console", "slow", "needs-rtx", "needs-triton", "not-run-here"}


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a page; ``status`` is its exit status, ``marks`` are its fence's classes."""

    words: str
    printed: tuple[str, ...]
    line: int
    status: int
    marks: frozenset[str]


@dataclass(frozen=True, slots=True)
class FileShown:
    """A file whose text a page shows."""

    name: str
    text: str


def steps_of(page: str) -> Iterator[Command | FileShown]:
    """What a page does, in order; a malformed fence raises ValueError with its line."""
    for fence in _FENCE.finditer(page):
        info = fence["info"].strip()
        line = page.count("\n", 0, fence.start()) + 1
        body = textwrap.dedent(fence["body"])
        title = _TITLE.search(info)
        if title is not None:
            yield FileShown(title[1], body)
            continue
        classes = {"console"} if info == "console" else set()
        if info.startswith("{"):
            classes = set(_CLASS.findall(info))
        if "console" in classes:
            yield from _commands(body, line, classes)


def _commands(body: str, line: int, classes: set[str]) -> Iterator[Command]:
    exits = [int(match[1]) for name in classes if (match := _EXIT.fullmatch(name))]
    unknown = {name for name in classes if not _EXIT.fullmatch(name)} - _KNOWN
    if unknown or len(exits) > 1:
        raise ValueError(f"line {line}: no such fence: {sorted(classes)}")
    found = list(_COMMAND.finditer(body))
    if not found or "".join(match[0] for match in found) != body:
        raise ValueError(
            f"line {line}: a console fence holds whole commands, '$ COMMAND': {body!r}"
        )
    for match in found:
        lines = [text.strip().removesuffix("\\").strip() for text in match[1].splitlines()]
        start = line + 1 + body.count("\n", 0, match.start())
        marks = frozenset(classes - {"console"})
        yield Command(" ".join(lines), tuple(match[2].splitlines()), start, sum(exits), marks)


def difference(expected: tuple[str, ...], found: str) -> str | None:
    """None where the output is what the page shows, else both."""
    pattern = "".join(
        r"(?:.*\n)*" if line.strip() == ANY else _line_pattern(line) for line in expected
    )
    # every line ends in a newline, the last as well
    text = "".join(f"{line.rstrip()}\n" for line in found.splitlines())
    if re.fullmatch(pattern, text):
        return None
    shown = "\n".join(expected)
    return f"the page shows\n{shown}\n--- and the command printed\n{text}"


def _line_pattern(line: str) -> str:
    words = line.split()
    lead = r" *" if line[:1] == " " else ""
    parts = (".*".join(re.escape(part) for part in word.split(ANY)) for word in words)
    return lead + " +".join(parts) + "\n"


def pages(folder: Path) -> list[Path]:
    """The pages of a folder, in order."""
    return sorted(folder.rglob("*.md"))
