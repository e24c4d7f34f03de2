from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from t2t_deploy.model import (
    Backbone,
    ModelConfig,
    T2TViT,
    TokensType,
    random_state_dict,
    reference_from_state_dict,
)

_BASE = ModelConfig(
    name="tiny",
    tokens_type=TokensType.PERFORMER,
    embed_dim=32,
    depth=2,
    num_heads=2,
    mlp_ratio=3.0,
    token_dim=16,
    image_size=32,
    num_classes=10,
)
# One small model of each kind in the family.
KINDS = {
    "performer": _BASE,
    "transformer": dataclasses.replace(_BASE, tokens_type=TokensType.TRANSFORMER),
    "dense": dataclasses.replace(
        _BASE, backbone=Backbone.DENSE, depth=4, stages=(2, 2), growth=16, num_heads=4
    ),
    "se": dataclasses.replace(_BASE, backbone=Backbone.SE),
    "ghost": dataclasses.replace(_BASE, backbone=Backbone.GHOST),
}

Infer = Callable[[onnx.ModelProto, torch.Tensor], np.ndarray]


def reference_of(config: ModelConfig) -> T2TViT:
    return reference_from_state_dict(random_state_dict(config), config)


@pytest.fixture(autouse=True)
def the_same_pictures() -> None:
    """What a test draws is the same in every run, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def reference(kind: str) -> T2TViT:
    return reference_of(KINDS[kind])


@pytest.fixture(scope="session")
def infer() -> Infer:
    """Run an ONNX model in ONNX Runtime, nothing rewritten by the runtime."""
    ort = pytest.importorskip("onnxruntime")

    def run(model: onnx.ModelProto, pictures: torch.Tensor) -> np.ndarray:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        logits: np.ndarray = session.run(None, {"image": pictures.numpy()})[0]
        return logits

    return run


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative to what is wanted, which is float64."""
    return float((found.double() - wanted).norm() / wanted.norm())
