"""What was done before: records of steps, found by the hash of all that a step depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t2t_deploy._codec import from_plain, to_plain
from t2t_deploy._files import file_sha256, write_text
from t2t_deploy._untrusted import DAMAGED
from t2t_deploy.workspace import manifest_text

FOLDER = "recipes"
_HASH = 64
_SHOWN_CHANGES = 4

ARTIFACT = "artifact "
"""Begins the names of artifacts in a fingerprint; the rest is what the recipe calls them."""

Fingerprint = Mapping[str, str]
"""What a step depends on, by name: options, contents of files, artifacts, tool versions."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file or folder that a step made, and the hash of its content.

    base: what ``path`` is relative to: ``workspace`` or ``recipe``; both may be moved.
    """

    base: str
    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Record:
    """A step that was done. sequence: order of the records, independent of the clock."""

    step: str
    recipe: str
    parts: Fingerprint
    outputs: tuple[OutputFile, ...]
    result: Mapping[str, Any]
    sequence: int = 0

    @property
    def key(self) -> str:
        """Identity of the work."""
        return key_of(self.step, self.parts)


class Records:
    """The records of a workspace, one file each. damaged: whether one could not be read."""

    def __init__(self, workspace: Path) -> None:
        self.folder = workspace / FOLDER
        read = [_read(path) for path in sorted(self.folder.glob("*.json"))]
        self.damaged = None in read
        self._known = {record.key: record for record in read if record is not None}

    def find(self, step: str, parts: Fingerprint) -> Record | None:
        """The record of the same step on the same things; None where there is none."""
        return self._known.get(key_of(step, parts))

    def latest(self, step: str, recipe: str) -> Record | None:
        """The last record of a step of this name in a recipe of this name: to see what changed."""
        found = [r for r in self._known.values() if (r.step, r.recipe) == (step, recipe)]
        return max(found, key=lambda record: record.sequence, default=None)

    def keep(self, record: Record) -> None:
        """Write a record, whole or not at all. Raises ArtifactError."""
        last = max((known.sequence for known in self._known.values()), default=0)
        kept = replace(record, sequence=last + 1)
        values = to_plain(kept)
        values["made"] = values.pop("outputs")
        write_text(self.folder / f"{record.key[:32]}.json", manifest_text(values))
        self._known[record.key] = kept


def key_of(step: str, parts: Fingerprint) -> str:
    """Hash of all that a step depends on. Names that the recipe gives do not count."""
    artifacts = sorted(value for name, value in parts.items() if name.startswith(ARTIFACT))
    others = {name: value for name, value in parts.items() if not name.startswith(ARTIFACT)}
    content = json.dumps([step.partition(" ")[0], artifacts, others], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def changes(before: Fingerprint, now: Fingerprint) -> str:
    """What differs between two states of the same step, in a few words."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    lines = [_change(name, before.get(name), now.get(name)) for name in names]
    more = f" and {len(lines) - _SHOWN_CHANGES} more" if len(lines) > _SHOWN_CHANGES else ""
    return "; ".join(lines[:_SHOWN_CHANGES]) + more


def tree_sha256(path: Path) -> str:
    """Hash of a file's content, or of all files of a folder with their names.

    Raises OSError where it is gone.
    """
    if not path.is_dir():
        return file_sha256(path)
    total = hashlib.sha256()
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        total.update(f"{file.relative_to(path).as_posix()}\0{file_sha256(file)}\0".encode())
    return total.hexdigest()


def _change(name: str, before: str | None, now: str | None) -> str:
    if before is None or now is None:
        return f"{name} is {'new' if before is None else 'gone'}"
    if max(len(before), len(now)) >= _HASH:
        return f"{name} changed"
    return f"{name} changed from {before} to {now}"


def _read(path: Path) -> Record | None:
    """A record; None for one that is damaged: its step is done again."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
        if text != manifest_text(values):
            return None
        return from_plain(Record, {**values, "outputs": values["made"]})
    except DAMAGED:
        return None
