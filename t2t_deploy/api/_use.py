"""What uses files: sessions, verdicts, accuracy, times, classes.

The examples go on from those of `_make`, in the same folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from t2t_deploy._options import DEVICE
from t2t_deploy._progress import Progress, silent
from t2t_deploy.api._arguments import AnyPath, path_of, paths_of, words_of
from t2t_deploy.commands import (
    ClusterPrediction,
    DrawnFeatures,
    Prediction,
    PredictRequest,
    RayRequest,
    open_artifact,
    workspace_of,
)
from t2t_deploy.commands import draw_features as _draw_features
from t2t_deploy.commands import examine_machine as _examine_machine
from t2t_deploy.commands import inspect_artifact as _inspect_artifact
from t2t_deploy.commands import predict_across as _predict_across
from t2t_deploy.commands import predict_images as _predict_images
from t2t_deploy.runtime import Session
from t2t_deploy.serving import DEFAULT_BLOCK, PredictedImage
from t2t_deploy.workspace import Workspace


def load_session(
    artifact: AnyPath,
    *,
    backend: str | None = None,
    threads: int | None = None,
    device: int | str | None = None,
    force: bool = False,
    trust: bool = False,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> Session:
    """Open an artifact, checked against its manifest, to run arrays through it.

    backend: None is ONNX Runtime on the CPU, and for an engine the runtime it was built for; never
    another one. Close the session, or use it as a context manager. trust: load an engine without
    manifest, which is code. Raises ArtifactError where the file is missing, altered or failed a
    check, EngineError, BackendError where the runtime cannot run here, UsageError.

    Examples
    --------
    >>> import numpy as np
    >>> from t2t_deploy import load_session
    >>> with load_session(made.path, threads=1) as session:
    ...     print(session.inputs[0], "->", session.outputs[0])
    ...     session.run({"image": np.zeros((2, 3, 32, 32), np.float32)})["logits"].shape
    image float32 (N, 3, 32, 32) -> logits float32 (N, 2)
    (2, 2)
    """
    return open_artifact(
        workspace_of(workspace),
        Path(artifact),
        backend=backend,
        threads=threads,
        device=None if device is None else DEVICE.read(device),
        force=force,
        trust=trust,
        progress=progress,
    )


def predict_images(
    artifact: AnyPath,
    images: str | Sequence[str],
    *,
    receive: Callable[[PredictedImage], None],
    top: int | None = None,
    labels: AnyPath | None = None,
    csv: AnyPath | None = None,
    backend: str | None = None,
    batch: int | None = None,
    threads: int | None = None,
    device: int | str | None = None,
    force: bool = False,
    trust: bool = False,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> Prediction:
    """The classes of pictures, handed to ``receive`` one by one: ``t2t-deploy predict``.

    images: files, folders, patterns such as ``val/**/*.jpg``, URIs. Nothing is kept of a picture
    but the names of those without a class. Raises ImageError, ArtifactError, BackendError,
    EngineError, UsageError.

    Examples
    --------
    >>> from t2t_deploy import predict_images
    >>> pictures = []
    >>> done = predict_images(made.path, "val", receive=pictures.append)
    >>> done.images, [len(picture.top) for picture in pictures]
    (4, [2, 2, 2, 2])
    """
    request = _predict_request(
        artifact, images, top, labels, csv, backend, batch, threads, device, force, trust
    )
    return _predict_images(workspace_of(workspace), request, receive, progress)


def predict_across(
    artifact: AnyPath,
    images: str | Sequence[str],
    *,
    output: AnyPath,
    ray: str = "local",
    workers: int | None = None,
    block: int = DEFAULT_BLOCK,
    top: int | None = None,
    labels: AnyPath | None = None,
    backend: str | None = None,
    batch: int | None = None,
    threads: int | None = None,
    device: int | str | None = None,
    force: bool = False,
    trust: bool = False,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> ClusterPrediction:
    """The same across a Ray cluster, into Parquet files: ``t2t-deploy predict --ray``.

    output: their folder; what is there already is not done again. block: pictures of a file. Raises
    as `predict_images`, and MissingDependencyError without Ray.
    """
    request = _predict_request(
        artifact, images, top, labels, None, backend, batch, threads, device, force, trust
    )
    across = RayRequest(Path(output), ray, workers, block)
    return _predict_across(workspace_of(workspace), request, across, progress)


def inspect_artifact(
    artifact: AnyPath, *, workspace: Workspace | AnyPath | None = None
) -> dict[str, Any]:
    """What is in an ONNX file or an engine, and its lineage, JSON-ready: ``t2t-deploy inspect``.

    Raises ArtifactError.

    Examples
    --------
    >>> from t2t_deploy import inspect_artifact
    >>> inspect_artifact(made.path)["graph"]["inputs"]
    ['image float32 (N, 3, 32, 32)']
    """
    return _inspect_artifact(workspace_of(workspace), Path(artifact))


def draw_features(
    artifacts: Iterable[AnyPath],
    *,
    features: AnyPath,
    plot: AnyPath | None = None,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> DrawnFeatures:
    """Draw the token maps of a picture at each stage: ``t2t-deploy inspect --features``.

    artifacts: ONNX files of the same weights, side by side. features: the picture. Raises
    ArtifactError, BackendError, ImageError, UsageError.

    Examples
    --------
    >>> from t2t_deploy import draw_features
    >>> drawn = draw_features([made.path], features="train/0.png")
    >>> [stage.grid for stage in drawn.features.stages][:3]
    [(32, 32), (8, 8), (4, 4)]
    """
    return _draw_features(
        workspace_of(workspace), paths_of(artifacts), Path(features), path_of(plot), progress
    )


def examine_machine() -> dict[str, Any]:
    """What this machine can build and run, and why not the rest: ``t2t-deploy doctor``.

    Examples
    --------
    >>> from t2t_deploy import examine_machine
    >>> [one["runs"] for one in examine_machine()["backends"] if one["name"] == "ort-cpu"]
    [True]
    """
    return _examine_machine()


def _predict_request(
    artifact: AnyPath,
    images: str | Sequence[str],
    top: int | None,
    labels: AnyPath | None,
    csv: AnyPath | None,
    backend: str | None,
    batch: int | None,
    threads: int | None,
    device: int | str | None,
    force: bool,
    trust: bool,
) -> PredictRequest:
    return PredictRequest(
        artifact=Path(artifact),
        images=words_of(images),
        top=top,
        labels=path_of(labels),
        csv=path_of(csv),
        backend=backend,
        batch=batch,
        threads=threads,
        device=None if device is None else DEVICE.read(device),
        force=force,
        trust=trust,
    )
