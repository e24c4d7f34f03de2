"""A recipe as values: which commands are called with what, and what is expected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOP1_WITHIN = 0.2
"""How far, in points, a measured top-1 may be from the published one."""


@dataclass(frozen=True, slots=True)
class Job:
    """A command that the recipe asks for.

    given: its arguments, paths as they can be opened from here. name: of the artifact that it
    makes, or of the one that it is about. source: the name of what it starts from; None for
    exports, and for commands that look at all artifacts.
    """

    command: str
    given: Mapping[str, Any]
    name: str = ""
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What the model must turn out to be; None is not checked.

    top1: of the float32 model on ``[evaluate]`` images, percent; within: how far off it may be.
    """

    sha256: str | None = None
    classes: int | None = None
    image_size: int | None = None
    params: int | None = None
    top1: float | None = None
    within: float = TOP1_WITHIN


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe file, read.

    calibration: how static quantisation takes ranges, without an artifact. None, or nothing in a
    tuple, where the recipe does not ask for it.
    """

    file: Path
    workspace: Path | None
    exports: tuple[Job, ...]
    expected: Expected | None
    calibration: Job | None
    quantizations: tuple[Job, ...]
    builds: tuple[Job, ...]
    verify: Job | None
    evaluate: Job | None
    bench: Job | None
    packages: tuple[Job, ...]

    @property
    def folder(self) -> Path:
        """What its paths are relative to."""
        return self.file.parent

    @property
    def artifacts(self) -> tuple[Job, ...]:
        """Everything that makes an artifact, in the order of the work."""
        return (*self.exports, *self.quantizations, *self.builds)
