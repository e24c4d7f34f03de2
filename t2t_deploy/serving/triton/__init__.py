"""Model repositories for Triton Inference Server."""

from __future__ import annotations

from t2t_deploy.serving.triton._config import Service
from t2t_deploy.serving.triton._formats import (
    DEFAULT_MAX_BATCH,
    Accelerator,
    Batching,
    ServingFormat,
    choose_accelerator,
    choose_batching,
    choose_format,
    signature_from_onnx,
    signature_from_tensors,
)
from t2t_deploy.serving.triton._repository import (
    ModelFolder,
    check_folders,
    put_back,
    service_folders,
    write_folders,
)

__all__ = [
    "DEFAULT_MAX_BATCH",
    "Accelerator",
    "Batching",
    "ModelFolder",
    "Service",
    "ServingFormat",
    "check_folders",
    "choose_accelerator",
    "choose_batching",
    "choose_format",
    "put_back",
    "service_folders",
    "signature_from_onnx",
    "signature_from_tensors",
    "write_folders",
]
