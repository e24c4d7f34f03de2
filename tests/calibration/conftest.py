"""Small exported graphs of every kind, and how they are run."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest

from t2t_deploy.calibration import (
    ChannelMaxima,
    Decision,
    LinearLayer,
    RoundedWeight,
    decide,
    find_layers,
    observed_model,
    round_weight,
    sources,
    stored_arrays,
)
from t2t_deploy.export import DeployT2TViT, choose_strategies, onnx_from_deploy
from t2t_deploy.graph import check_graph
from t2t_deploy.model import ModelConfig, random_state_dict, reference_from_state_dict
from t2t_deploy.types import INPUT_NAME, Precision, Target

from ..export.conftest import KINDS, run_graph
from ..outliers import with_outliers

OPSET = 18
TARGETS = (Target.CPU, Target.TENSORRT, Target.PORTABLE)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def graph_of(
    config: ModelConfig,
    target: Target,
    precision: Precision = Precision.FP32,
    *,
    opset: int = OPSET,
    factor: float = 1,
    performer: str | None = None,
) -> onnx.ModelProto:
    """An exported graph as it is quantised. factor: of outlier channels put into its weights."""
    weights = random_state_dict(config)
    if factor != 1:
        weights = with_outliers(weights, factor).state_dict
    strategies = choose_strategies(target, performer=performer)
    deploy = DeployT2TViT(reference_from_state_dict(weights, config), strategies, precision)
    model = onnx_from_deploy(deploy, opset=opset, merge_bias=False)
    return check_graph(model, batch=None, contrib=strategies.fuse_attention)


@functools.cache
def tiny(
    kind: str,
    target: Target,
    precision: Precision = Precision.FP32,
    opset: int = OPSET,
    factor: float = 1,
) -> onnx.ModelProto:
    """The small graph of a kind; the same object each time, so nobody changes it."""
    return graph_of(KINDS[kind], target, precision, opset=opset, factor=factor)


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    return run_graph(model, feeds)


def logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    return run(model, **{INPUT_NAME: images})["logits"]


def pictures(count: int = 4, seed: int = 0) -> np.ndarray:
    shape = (count, 3, 32, 32)
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def read_tensors(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    """What the layers of a graph read on these pictures."""
    names = sources(find_layers(model))
    return run(observed_model(model, names), **{INPUT_NAME: images})


def channel_max(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    maxima = ChannelMaxima()
    maxima.add(read_tensors(model, images))
    return maxima.channels


def ranges_of(model: onnx.ModelProto, images: np.ndarray) -> dict[str, float]:
    return {name: float(np.abs(x).max()) for name, x in read_tensors(model, images).items()}


def decisions_of(model: onnx.ModelProto) -> tuple[Decision, ...]:
    return decide(find_layers(model))


def chosen(decisions: tuple[Decision, ...]) -> list[LinearLayer]:
    return [found.layer for found in decisions if found.quantised]


def rounded_weights(
    model: onnx.ModelProto, precision: Precision = Precision.INT8
) -> dict[str, RoundedWeight]:
    """The weights of the layers that are quantised, each at its nearest code."""
    stored = stored_arrays(model)
    found = {}
    for layer in chosen(decisions_of(model)):
        weight = stored[layer.weight]
        found[layer.name] = round_weight(weight, precision, scale_dtype=weight.dtype)
    return found


def layer(
    name: str,
    source: str,
    inputs: int = 3,
    outputs: int = 5,
    *,
    rows: int = 4,
    normalised: bool = True,
    cut_from: str | None = None,
) -> LinearLayer:
    """One of no graph."""
    return LinearLayer(
        name, f"/{name}", f"{name}.weight", source, f"{name}:0", inputs, outputs, rows, normalised,
        cut_from,
    )  # fmt: skip
