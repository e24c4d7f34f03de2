"""Every error a user can fix: its message has the fault, what was expected, the next step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar


class DeployError(Exception):
    """Anything the user can fix; the command line prints it in one line."""

    exit_status: ClassVar[int] = 1
    lacks_tool: ClassVar[bool] = False
    """whether this machine has no tool for it, so that what was asked for is not run"""

    @property
    def kind(self) -> str:
        """The stable name used in JSON output."""
        return type(self).__name__


class UsageError(DeployError):
    """Options that contradict each other."""

    exit_status = 2


class CheckpointError(DeployError):
    """A weights file that does not fit the requested model."""


class AmbiguousVariantError(CheckpointError):
    """The shapes in a checkpoint fit more than one variant."""


class ConfigError(DeployError):
    """A model description that makes no sense."""


class RecipeError(DeployError):
    """A recipe that cannot be run."""


class ImageError(DeployError):
    """A picture that cannot be read."""


class ExportError(DeployError):
    """The graph could not be written, or does not keep its contract."""


class ArtifactError(DeployError):
    """A file of the workspace is missing, altered or unsuitable."""


class BusyError(ArtifactError):
    """Another command works on what this one needs, and this one was not to wait."""


class BackendError(DeployError):
    """A runtime that cannot run on this machine."""


class UnavailableError(BackendError):
    """A device, package or kernel that this machine lacks; its ``kind`` is BackendError's."""

    lacks_tool: ClassVar[bool] = True

    @property
    def kind(self) -> str:
        """That of the errors that it is one of."""
        return BackendError.__name__


class MissingDependencyError(BackendError):
    """An optional package is absent or does not import."""

    lacks_tool: ClassVar[bool] = True


class MisfitError(DeployError):
    """Nothing could be judged, for inputs and options do not fit each other."""


class CalibrationError(DeployError):
    """Pictures, ranges or a graph that do not fit each other."""


class EngineError(DeployError):
    """The engine builder refused the graph or the request."""


class InputError(DeployError):
    """Tensors whose name, dtype or shape do not fit a session."""


class ComparisonError(DeployError):
    """Results of a benchmark that cannot be read, or compared with others."""


class MemoryShortError(DeployError):
    """There is less memory than the work needs."""


class CrashError(DeployError):
    """Native code crashed the process that did the work."""


class MachineError(DeployError):
    """Unexpected errors of disk, permissions or paths of this machine."""


class CheckFailed(DeployError):
    """The work is done and kept, but a check of it failed."""

    exit_status = 3


def shown_path(path: Path) -> str:
    """A path for a message: printable and on one line, whatever bytes its name has."""
    return one_line(os.fsencode(path).decode("utf-8", "backslashreplace"))


def shown_size(size: object) -> str:
    """An image size of a config or a manifest: 224, or 128x256 (height x width)."""
    return "x".join(map(str, size)) if isinstance(size, (list, tuple)) else str(size)


def one_line(text: str) -> str:
    """A text that may quote a path, printable and on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_few(names: Sequence[str], separator: str = ", ") -> str:
    """The first three, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return separator.join(names[:3]) + more


def counted(count: int, noun: str) -> str:
    """A number with its noun: 1 picture, 2 pictures, 1,000 pictures."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"
