"""The file that `tune` picked: ``@best`` in place of an artifact."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from t2t_deploy._codec import from_plain, to_plain
from t2t_deploy._files import write_text
from t2t_deploy._untrusted import MAX_MANIFEST_BYTES, first_line, json_from_file
from t2t_deploy.errors import ArtifactError
from t2t_deploy.workspace._manifest import manifest_text

BEST = "@best"
TUNE = "tune"
"""Folder of a workspace: what `tune` measured, its recipe and its pick."""
_FILE = "best.json"


@dataclass(frozen=True, slots=True)
class Best:
    """What was picked, and for what.

    artifact: relative to the workspace where it lies in it. streams: callers at once. device: of
    the GPU; None is the CPU, or none for a pick that was not timed.
    """

    artifact: str
    sha256: str
    backend: str
    goal: str
    batch: int
    threads: int
    streams: int = 1
    device: int | None = None


def write_best(root: Path, best: Best) -> None:
    """Make it the workspace's pick. Raises ArtifactError."""
    write_text(root / TUNE / _FILE, manifest_text(to_plain(best)))


def read_best(root: Path) -> Best:
    """The workspace's pick. Raises ArtifactError where there is none."""
    path = root / TUNE / _FILE
    try:
        return from_plain(Best, json_from_file(path, MAX_MANIFEST_BYTES))
    except FileNotFoundError:
        raise ArtifactError(f"workspace {root} has no {BEST}: t2t-deploy tune picks it") from None
    except (OSError, ValueError, json.JSONDecodeError) as err:
        raise ArtifactError(f"{path} cannot be read ({first_line(err)}); tune again") from err
