"""Pictures a graph was calibrated on say nothing about its accuracy."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2t_deploy.errors import CalibrationError
from t2t_deploy.pictures._image_set import file_digests
from t2t_deploy.pictures._labelled_set import LabelledSet, labelled_set_from_folder

if TYPE_CHECKING:
    from t2t_deploy.workspace import Artifact


def overlap(artifact: Artifact, paths: Sequence[Path]) -> str | None:
    """None unless some of the files were among an artifact's calibration pictures; else which."""
    calibrated_on = () if artifact.manifest is None else artifact.manifest.calibrated_on
    if not calibrated_on:
        return None
    return shared_pictures(calibrated_on, paths, artifact.path.name)


def shared_pictures(calibrated_on: Collection[str], paths: Sequence[Path], name: str) -> str | None:
    """None unless files have one of these SHA-256; else a line that says which."""
    known = set(calibrated_on)
    digests = _digests(tuple(paths))
    shared = [path for path, sha in zip(paths, digests, strict=True) if sha in known]
    if not shared:
        return None
    return (
        f"{len(shared)} of {len(paths)} pictures, {shared[0]} the first, are among those that "
        f"{name} was calibrated on; expected none: evaluate on others, or calibrate on others"
    )


def evaluation_images(folder: Path, calibrated_on: Sequence[str], name: str) -> LabelledSet:
    """The pictures a budget is measured on. Raises CalibrationError for one calibrated on."""
    images = labelled_set_from_folder(folder)
    reason = shared_pictures(calibrated_on, images.paths, name)
    if reason is not None:
        raise CalibrationError(reason)
    return images


@functools.lru_cache(maxsize=1)
def _digests(paths: tuple[Path, ...]) -> tuple[str, ...]:
    """Every artifact of a command is held against the same pictures: they are hashed once."""
    return file_digests(paths)
