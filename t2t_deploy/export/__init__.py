"""Deploy form (exact rewrites of the reference), torch -> ONNX, graph checks.

Strategies and graph checks need no torch; the deploy form is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from t2t_deploy.export._ends import NORMALISED_NAME, with_ends, with_logits_shown, without_ends
from t2t_deploy.export._graph import GraphSummary, check_graph, summarise_graph
from t2t_deploy.export._layer_tensors import LayerTensor, layer_tensors, with_tensors_shown
from t2t_deploy.export._strategies import (
    PerformerForm,
    RewriteReport,
    SoftSplitForm,
    Strategies,
    choose_strategies,
)

if TYPE_CHECKING:
    from t2t_deploy.export._deploy import DeployT2TViT
    from t2t_deploy.export._to_onnx import DEFAULT_OPSET, check_opset, onnx_from_deploy

_LAZY = {
    "DEFAULT_OPSET": "_to_onnx",
    "DeployT2TViT": "_deploy",
    "check_opset": "_to_onnx",
    "onnx_from_deploy": "_to_onnx",
}

__all__ = [
    "DEFAULT_OPSET",
    "NORMALISED_NAME",
    "DeployT2TViT",
    "GraphSummary",
    "LayerTensor",
    "PerformerForm",
    "RewriteReport",
    "SoftSplitForm",
    "Strategies",
    "check_graph",
    "check_opset",
    "choose_strategies",
    "layer_tensors",
    "onnx_from_deploy",
    "summarise_graph",
    "with_ends",
    "with_logits_shown",
    "with_tensors_shown",
    "without_ends",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
