"""Artifacts against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from t2t_deploy.calibration import image_set_from_folder
from t2t_deploy.errors import ArtifactError
from t2t_deploy.pipeline._progress import Report, silent
from t2t_deploy.runtime import SessionRequest, open_session, why_not_runnable
from t2t_deploy.types import TOLERANCES, Precision, Status
from t2t_deploy.verify import (
    PictureSet,
    Verification,
    not_verified,
    standard_pictures,
    verify_session,
)
from t2t_deploy.workspace import Artifact, Manifest, Workspace

_MAX_PICTURES = 64


def verify_file(
    path: Path, manifest: Manifest, weights: Path, pictures: PictureSet | None = None
) -> Verification:
    """Compare a file with the reference on the standard pictures, or on others.

    What no runtime here can run is reported as not run, with the reason.
    """
    tolerance = TOLERANCES[manifest.precision]
    if manifest.kind == "engine":
        backend = str(manifest.details["engine"]["backend"])
        reason = why_not_runnable(backend)
        return not_verified(tolerance, reason or f"no {backend} session in this version")
    if manifest.precision is Precision.BF16:
        return not_verified(tolerance, "ONNX Runtime's CPU kernels have no bf16 matrix product")
    reason = why_not_runnable("ort-cpu")
    if reason is not None:
        return not_verified(tolerance, reason)
    chosen = standard_pictures(manifest.config["image_size"]) if pictures is None else pictures
    eager = SessionRequest("eager", weights, config=manifest.config)
    with open_session(eager) as reference, open_session(SessionRequest("ort-cpu", path)) as other:
        result = verify_session(reference, other, chosen, tolerance)
    return result


def verify_artifacts(
    workspace: Workspace,
    paths: Sequence[Path],
    images: Path | None = None,
    report: Report = silent,
) -> list[tuple[Artifact, Verification]]:
    """Verify artifacts again, all of the workspace when none is named.

    images: a folder of pictures to take instead of the standard ones. A verdict on the standard
    pictures replaces the one in the manifest. Raises ArtifactError, ImageError.
    """
    if paths:
        artifacts = [workspace.open(path, force=True) for path in paths]
    else:
        artifacts = [workspace.checked(a, force=True) for a in workspace.artifacts()]
    if not artifacts:
        raise ArtifactError(
            f"workspace {workspace.root} has no artifact; make one first: t2t-deploy export"
        )
    results = []
    for artifact in artifacts:
        manifest = artifact.known()
        report.step(f"verifying {artifact.path.name}")
        pictures = None
        if not manifest.weights:
            reason = "made from a file without manifest, so its reference is unknown"
            results.append((artifact, not_verified(TOLERANCES[manifest.precision], reason)))
            continue
        if images is not None:
            pictures = _pictures_from_folder(images, int(manifest.config["image_size"]), report)
        result = verify_file(artifact.path, manifest, workspace.weights(manifest), pictures)
        if pictures is None and result.status is not Status.NOT_RUN:
            artifact = workspace.update(artifact, verification=result.to_dict())
        results.append((artifact, result))
    return results


def _pictures_from_folder(folder: Path, size: int, report: Report) -> PictureSet:
    images = image_set_from_folder(folder, count=_MAX_PICTURES)
    if images.left_out:
        report.note(f"took the first {_MAX_PICTURES} pictures, left out {images.left_out}")
    batch = next(iter(images.batches(size, len(images.paths))))
    return PictureSet(tuple(path.name for path in images.paths), batch)
