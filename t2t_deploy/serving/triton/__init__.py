"""Model repositories for Triton Inference Server."""

from __future__ import annotations

from t2t_deploy.serving.triton._config import Service
from t2t_deploy.serving.triton._formats import (
    Accelerator,
    ServingFormat,
    choose_accelerator,
    choose_batching,
    choose_format,
    signature_from_onnx,
    signature_from_tensors,
)
from t2t_deploy.serving.triton._repository import (
    check_folders,
    put_back,
    service_folders,
    write_folders,
)

__all__ = [
    "Accelerator",
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
