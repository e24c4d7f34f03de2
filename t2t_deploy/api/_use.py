"""What uses files: sessions, verdicts, accuracy, times, classes.

The examples go on from those of `_make`, in the same folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from t2t_deploy._progress import Progress, silent
from t2t_deploy.api._arguments import AnyPath, path_of, paths_of
from t2t_deploy.commands import (
    DrawnFeatures,
    workspace_of,
)
from t2t_deploy.commands import draw_features as _draw_features
from t2t_deploy.commands import examine_machine as _examine_machine
from t2t_deploy.commands import inspect_artifact as _inspect_artifact
from t2t_deploy.workspace import Workspace


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
