"""Deploy form (exact rewrites of the reference), torch -> ONNX; torch is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2t_deploy._optional import lazy
from t2t_deploy.export._strategies import (
    PerformerForm,
    RewriteReport,
    SoftSplitForm,
    Strategies,
    choose_strategies,
)

if TYPE_CHECKING:
    from t2t_deploy.export._deploy import DeployT2TViT
    from t2t_deploy.export._to_onnx import DEFAULT_OPSET, onnx_from_deploy

__all__ = [
    "DEFAULT_OPSET",
    "DeployT2TViT",
    "PerformerForm",
    "RewriteReport",
    "SoftSplitForm",
    "Strategies",
    "choose_strategies",
    "onnx_from_deploy",
]

if not TYPE_CHECKING:  # with it, any name would be right
    __getattr__ = lazy(__name__, __all__, "_to_onnx", "_deploy")
