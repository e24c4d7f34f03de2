"""A file with its manifest: found by its content, replaced so that nothing is lost."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2t_deploy._files import file_sha256, keep, locked_folder, publish, write_text
from t2t_deploy._options import path_of
from t2t_deploy.errors import ArtifactError, BusyError
from t2t_deploy.workspace._manifest import (
    Manifest,
    Records,
    Superseded,
    manifest_path_for,
    read_records,
)

_ENGINE_SUFFIXES = frozenset({".engine", ".plan", ".trt"})


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file and its manifest; a foreign file has none."""

    path: Path
    manifest: Manifest | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", path_of(self.path, "path"))

    @property
    def kind(self) -> str:
        """Kind by the manifest, else by the name: engine or onnx."""
        if self.manifest is not None:
            return self.manifest.kind
        return "engine" if self.path.suffix in _ENGINE_SUFFIXES else "onnx"

    def require_manifest(self) -> Manifest:
        """The manifest. Raises ArtifactError for a foreign file."""
        if self.manifest is None:
            raise ArtifactError(
                f"{self.path} has no manifest, so its weights and variant are unknown; it can be "
                "inspected, benched and built as it is, not verified or retyped: use a file that "
                "t2t-deploy exported"
            )
        return self.manifest

    known = require_manifest  # what scripts call it


def artifact_of_file(path: Path) -> Artifact:
    """A file with the manifest of its content. Raises ArtifactError where it was altered.

    A file may be replaced while it is read: as long as its manifest changes, it is read again.
    """
    manifest_path = manifest_path_for(path)
    read: Records | None = None
    found = ""
    while manifest_path.exists():
        records = read_records(manifest_path)
        if records == read:
            raise ArtifactError(
                f"{path} was altered: its SHA-256 is {found[:12]}, its manifest says "
                f"{records.manifest.sha256[:12]}; make it again"
            )
        read, found = records, file_sha256(path)
        known = records.of(found)
        if known is not None:
            return Artifact(path, known.manifest)
    return Artifact(path, None)


def replace_file(temporary: Path, path: Path, manifest: Manifest) -> None:
    """Put a finished file and its manifest over what is there.

    Whenever this is cut short, the file that lies there is one that its manifest knows: the old
    one, or the new one.
    """
    beside = manifest_path_for(path)
    with locked_folder(path.parent):
        write_text(beside, manifest.to_json(_superseded(path)))
        publish(temporary, path)
        with contextlib.suppress(ArtifactError):  # the manifest that is there knows the file too
            write_text(beside, manifest.to_json())


def keep_finished(
    temporary: Path, path: Path, manifest: Manifest, err: OSError | ArtifactError
) -> ArtifactError:
    """Keep a finished file whose last step failed, with its manifest where that can be written.

    path: where it was to be. Returns what to raise: the cause, and where the file is.
    """
    # without a manifest a file of the workspace would be taken for that of a killed command
    kept, words = keep(temporary if temporary.exists() else path, path, err)
    if kept is not None:
        try:
            own = dataclasses.replace(manifest, file=kept.name)
            write_text(manifest_path_for(kept), own.to_json())
        except ArtifactError:
            words += ", without its manifest"
    return (BusyError if isinstance(err, BusyError) else ArtifactError)(words)


def change_manifest(artifact: Artifact, changes: Mapping[str, Any]) -> Artifact:
    """Replace fields of a manifest as it is now; ``details`` are added to those that are there.

    Raises ArtifactError where the file was made anew meanwhile.
    """
    beside = manifest_path_for(artifact.path)
    with locked_folder(beside.parent):
        known = read_records(beside).of(artifact.require_manifest().sha256)
        if known is None or known.manifest is None:
            raise ArtifactError(
                f"{artifact.path} was made anew while this command ran, and what it found is of "
                "the file before; run it again"
            )
        manifest = known.manifest
        if "details" in changes:
            changes = {**changes, "details": {**manifest.details, **changes["details"]}}
        manifest = dataclasses.replace(manifest, **changes)
        write_text(beside, manifest.to_json())
    return Artifact(artifact.path, manifest)


def _superseded(path: Path) -> Superseded | None:
    """What lies at a path, with what is known of it; None where that is nothing, or altered."""
    if not path.is_file():
        return None
    sha256, beside = file_sha256(path), manifest_path_for(path)
    if not beside.exists():
        return Superseded(sha256, None)
    with contextlib.suppress(ArtifactError):  # a damaged manifest says nothing of the file
        return read_records(beside).of(sha256)
    return None
