"""Whether a workspace is whole, and what killed commands left in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from t2t_deploy._files import TEMPORARY, abandoned, file_sha256
from t2t_deploy.errors import ArtifactError
from t2t_deploy.workspace._artifact import artifact_of_file
from t2t_deploy.workspace._locks import is_held
from t2t_deploy.workspace._manifest import manifest_path_for, read_manifest

WEIGHTS = "weights"
CALIBRATION = "calibration"
PARTIAL = ".partial"
"""Suffix of the sums of a calibration under way; its stem names the calibration's lock."""


@dataclass(frozen=True, slots=True)
class WorkspaceCheck:
    """How many artifacts were compared with their manifests, and what is wrong, a line each.

    leftovers: of killed commands; they harm nothing and take space.
    """

    artifacts: int
    problems: tuple[str, ...]
    leftovers: tuple[Path, ...] = ()


def check_files(root: Path, files: list[Path]) -> WorkspaceCheck:
    """Compare artifacts, and all weights, with what is written of them."""
    problems: list[str] = []
    count = 0
    used: dict[str, Path] = {}
    for path in files:
        try:
            read_manifest(manifest_path_for(path))
            count += 1
            if not path.is_file():
                raise ArtifactError(f"{path} is gone, its manifest is not; make it again")
            manifest = artifact_of_file(path).require_manifest()
            if manifest.outdated is not None:
                problems.append(f"{path}: {manifest.outdated}")
            if manifest.weights_sha256 is not None:
                used.setdefault(manifest.weights_sha256, path)
        except ArtifactError as err:
            problems.append(str(err))
    stored = {path.stem for path in finished(root / WEIGHTS, "*.safetensors")}
    for sha256 in sorted(stored | used.keys()):
        try:
            check_weights(root, sha256, used[sha256].name if sha256 in used else "")
        except ArtifactError as err:
            problems.append(str(err))
    return WorkspaceCheck(count, tuple(problems), tuple(leftovers(root)))


def finished(folder: Path, pattern: str) -> list[Path]:
    """Files by a pattern, without those that a command is, or was, writing."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith(TEMPORARY))


def check_weights(root: Path, sha256: str, user: str) -> Path:
    """Stored weights by the hash of their content. Raises ArtifactError."""
    path = root / WEIGHTS / f"{sha256}.safetensors"
    if not path.is_file():
        raise ArtifactError(
            f"workspace {root} lacks the weights {sha256[:12]} of {user}; use "
            "the workspace it was exported in, or export it again here"
        )
    if file_sha256(path) != sha256:
        raise ArtifactError(f"{path} was altered; remove it and export again")
    return path


def leftovers(root: Path) -> Iterator[Path]:
    """What killed commands left: unfinished files, sums of ranges, a file without manifest."""
    yield from abandoned(root)
    for path in finished(root / CALIBRATION, f"*{PARTIAL}"):
        if not is_held(root, path.stem):
            yield path
    for pattern in ("onnx/*.onnx", "engines/*.engine"):
        for path in finished(root, pattern):
            # ours beyond doubt: a name that holds the content's hash
            stem = "" if manifest_path_for(path).exists() else path.stem.rpartition("-")[2]
            if stem and path.is_file() and file_sha256(path).startswith(stem):
                yield path
