from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from t2t_deploy.export import DeployT2TViT, choose_strategies
from t2t_deploy.model import (
    Backbone,
    ModelConfig,
    T2TViT,
    TokensType,
    random_state_dict,
    reference_from_state_dict,
)
from t2t_deploy.types import INPUT_NAME, OUTPUT_NAME, Precision, Target

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


def reference_of(config: ModelConfig) -> T2TViT:
    return reference_from_state_dict(random_state_dict(config), config)


def deployed(
    reference: T2TViT | str,
    target: Target = Target.PORTABLE,
    soft_split: str | None = None,
    performer: str | None = None,
    precision: Precision = Precision.FP32,
) -> DeployT2TViT:
    """The deploy form of a reference, or of the one of a kind."""
    if isinstance(reference, str):
        reference = reference_of(KINDS[reference])
    strategies = choose_strategies(target, soft_split, performer)
    return DeployT2TViT(reference, strategies, precision)


def drawn(model: DeployT2TViT | T2TViT, count: int = 3) -> Tensor:
    """Pictures of noise."""
    return torch.randn(count, *model.config.input_shape)


def logits_of(model: DeployT2TViT | T2TViT, pictures: Tensor) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = model(pictures).numpy()
    return found


def deploy_error(deploy: DeployT2TViT, reference: T2TViT) -> float:
    pictures = drawn(reference)
    return relative_error(logits_of(deploy, pictures), logits_of(reference, pictures))


def run_graph(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a model in ONNX Runtime, nothing rewritten by the runtime."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def graph_error(model: onnx.ModelProto, reference: T2TViT, count: int = 3) -> float:
    """Of an exported graph on pictures of noise."""
    pictures = drawn(reference, count)
    found = run_graph(model, {INPUT_NAME: pictures.numpy()})[OUTPUT_NAME]
    return relative_error(found, logits_of(reference, pictures))


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


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative to what is wanted, which is float64."""
    return float((found.double() - wanted).norm() / wanted.norm())
