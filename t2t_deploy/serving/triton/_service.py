"""The folders of a service: the model, the steps around it, the ensemble of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2t_deploy.serving.triton._config import (
    LABELS_FILE,
    MODEL_FILES,
    Service,
    ensemble_config,
    model_config,
    postprocess_config,
    preprocess_config,
)
from t2t_deploy.serving.triton._formats import ServingFormat
from t2t_deploy.serving.triton._pbtxt import pbtxt
from t2t_deploy.serving.triton._repository import ModelFolder
from t2t_deploy.serving.triton._sources import own_sources, server_file

CONFIG_FILE = "config.pbtxt"
_VERSION = "1"
# of an empty folder nothing is kept where a repository lies in an object store
_KEEP = f"{_VERSION}/.keep"


def service_names(service: Service) -> tuple[str, ...]:
    """Names of the folders, in the order in which they are to be published."""
    return (
        service.name,
        service.preprocess_name,
        service.postprocess_name,
        service.ensemble_name,
    )


def service_folders(
    service: Service, model: Path, manifest: Path | None, about: Mapping[str, Any]
) -> tuple[ModelFolder, ...]:
    """All folders, the ensemble last.

    model: the artifact's file. manifest: of the artifact, to lie beside it. about: what each
    folder's note says besides.
    """
    file = f"{_VERSION}/{MODEL_FILES[service.format]}"
    files: dict[str, str | Path] = {CONFIG_FILE: pbtxt(model_config(service)), file: model}
    if manifest is not None:
        files[f"{file}.manifest.json"] = manifest
    if service.format is ServingFormat.PYTHON:
        files[f"{_VERSION}/model.py"] = server_file("classifier")
    labels = "".join(f"{label}\n" for label in service.labels or ())
    steps: dict[str, dict[str, str | Path]] = {
        service.name: files,
        service.preprocess_name: {
            CONFIG_FILE: pbtxt(preprocess_config(service)),
            f"{_VERSION}/model.py": server_file("preprocess"),
            **{f"{_VERSION}/{place}": text for place, text in _transform().items()},
        },
        service.postprocess_name: {
            CONFIG_FILE: pbtxt(postprocess_config(service)),
            f"{_VERSION}/model.py": server_file("postprocess"),
        },
        service.ensemble_name: {CONFIG_FILE: pbtxt(ensemble_config(service)), _KEEP: ""},
    }
    if labels:
        files[LABELS_FILE] = labels
        steps[service.postprocess_name][LABELS_FILE] = labels
    return tuple(ModelFolder(name, steps[name], about) for name in service_names(service))


def _transform() -> dict[str, str]:
    return own_sources("t2t_deploy.images")
