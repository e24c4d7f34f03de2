"""Small exported graphs of every kind, plain and quantised, and what breaks their rules."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from t2t_deploy.calibration import (
    TYPED_QDQ_OPSET,
    ChannelMaxima,
    Codes,
    Decision,
    LinearLayer,
    Placement,
    QuantizedGraph,
    RoundedWeight,
    code_limit,
    decide,
    find_layers,
    observed_model,
    place_dynamic,
    place_static,
    round_weight,
    sources,
    storable_scale,
    stored_arrays,
    weight_scales,
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


QUANTIZERS = ("QuantizeLinear", "DynamicQuantizeLinear")


@functools.cache
def tiny_ranges(kind: str, target: Target) -> dict[str, float]:
    return ranges_of(tiny(kind, target), pictures())


def static(
    kind: str,
    target: Target,
    precision: Precision = Precision.INT8,
    *,
    base: Precision = Precision.FP32,
    opset: int = 18,
    codes: Codes = Codes.SIGNED,
) -> QuantizedGraph:
    model = tiny(kind, target, base, opset)
    # sources are named alike in the 16-bit twin only where no cast stands before them
    known = tiny_ranges(kind, target) if base is Precision.FP32 else {}
    ranges = {layer.source: known.get(layer.source, 4.0) for layer in chosen(decisions_of(model))}
    weights = rounded_weights(model, precision)
    return place_static(model, decisions_of(model), weights, ranges, precision, codes)


@functools.cache
def dynamic(kind: str) -> QuantizedGraph:
    model = tiny(kind, Target.CPU)
    return place_dynamic(model, decisions_of(model), rounded_weights(model))


def readers_of(graph: onnx.GraphProto) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
    """Tensor -> the nodes that read it, and at which input."""
    found: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            found.setdefault(name, []).append((node, index))
    return found


def makers_of(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def with_codes_before(
    model: onnx.ModelProto, name: str, inputs: tuple[int, ...], dtype: type = np.float32
) -> onnx.ModelProto:
    """A copy in which some inputs of a node are quantised and dequantised. dtype: of the graph."""
    found = copy.deepcopy(model)
    nodes = list(found.graph.node)
    del found.graph.node[:]
    for word, value in (("step", np.array(0.1, dtype)), ("point", np.array(0, np.int8))):
        found.graph.initializer.append(numpy_helper.from_array(value, word))
    for node in nodes:
        for index in inputs if node.name == name else ():
            short, wide = f"{name}/short{index}", f"{name}/wide{index}"
            for op, read, made in (
                ("QuantizeLinear", node.input[index], short),
                ("DequantizeLinear", short, wide),
            ):
                made_node = helper.make_node(op, [read, "step", "point"], [made], made)
                found.graph.node.append(made_node)
            node.input[index] = wide
        found.graph.node.append(node)
    onnx.checker.check_model(found)
    return found


def misread_codes(graph: onnx.GraphProto, ops: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Stored codes that are read elsewhere than at these inputs of these operators."""
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    readers = readers_of(graph)
    return [
        f"{name} is read as a number and stored in 8 bits by {reader.op_type} {reader.name}"
        for name, value in stored.items()
        for reader, index in readers.get(name, [])
        if value.dtype.itemsize == 1 and index not in ops.get(reader.op_type, ())
    ]


def misplaced(model: onnx.ModelProto) -> list[str]:
    """What breaks the rule that 8 bits lead to products with a constant weight, and nowhere else.

    Written without looking at decisions: it knows the two forms of a layer, and what is not one of
    them is misplaced.
    """
    graph = model.graph
    readers, stored = readers_of(graph), stored_arrays(model)
    maker = makers_of(graph)
    codes = dict.fromkeys((*QUANTIZERS, "DequantizeLinear"), (0, 2))
    wrong = misread_codes(graph, {**codes, "MatMulInteger": (1, 3)})
    for node in graph.node:
        if node.op_type in QUANTIZERS:
            if node.input[0] in stored:
                wrong.append(f"{node.name} quantises a constant at run time")
            for reader, index in readers.get(node.output[0], []):
                dequantised = reader.op_type == "DequantizeLinear" and index == 0
                multiplied = (
                    reader.op_type == "MatMulInteger" and index == 0 and reader.input[1] in stored
                )
                if not dequantised and not multiplied:
                    wrong.append(f"{node.name} leads to {reader.op_type} {reader.name}")
        elif node.op_type == "DequantizeLinear":
            constant = node.input[0] in stored
            if constant and stored[node.input[0]].ndim != 2:
                wrong.append(f"{node.name} dequantises something other than a matrix")
            for reader, index in readers.get(node.output[0], []):
                other = maker.get(reader.input[1 - index]) if reader.op_type == "MatMul" else None
                if (
                    index != int(constant)
                    or other is None
                    or other.op_type != "DequantizeLinear"
                    or (other.input[0] in stored) is constant
                ):
                    wrong.append(f"{node.name} leads to {reader.op_type} {reader.name}")
        elif node.op_type == "MatMulInteger" and not (
            node.input[1] in stored and maker[node.input[0]].op_type in QUANTIZERS
        ):
            wrong.append(f"{node.name} is no product of codes with a constant weight")
    return wrong


@dataclass(frozen=True)
class Formed:
    """A float16 graph for TensorRT with 8-bit products, and what it was made of.

    steps: of the codes of each tensor that layers read or write.
    """

    placed: QuantizedGraph
    weights: Mapping[str, RoundedWeight]
    steps: Mapping[str, float]

    @property
    def model(self) -> onnx.ModelProto:
        return self.placed.model

    @property
    def quantised(self) -> dict[str, Decision]:
        """By layer."""
        return {one.layer.name: one for one in self.placed.decisions if one.quantised}


@functools.cache
def observed_ranges(kind: str) -> dict[str, float]:
    """Of all that layers of the float32 graph read and write."""
    model = tiny(kind, Target.TENSORRT)
    layers = find_layers(model)
    names = {name for layer in layers for name in (layer.ranged, layer.result)}
    found = run(observed_model(model, sorted(names)), **{INPUT_NAME: pictures()})
    return {name: float(np.abs(values).max()) for name, values in found.items()}


@functools.cache
def formed(kind: str, placement: Placement, precision: Precision = Precision.INT8) -> Formed:
    """As quantize makes it: layers, ranges and weights are those of the float32 graph."""
    wide = tiny(kind, Target.TENSORRT)
    half = tiny(kind, Target.TENSORRT, Precision.FP16, TYPED_QDQ_OPSET)
    decisions = decide(find_layers(wide), precision=precision, placement=placement)
    ranges, stored = observed_ranges(kind), stored_arrays(wide)
    dtype = np.dtype(np.float16)
    steps = {
        name: float(storable_scale(largest / code_limit(precision), dtype))
        for name, largest in ranges.items()
    }
    values = {one.layer.name: stored[one.layer.weight] for one in decisions if one.quantised}
    parts = weight_scales(decisions, values, steps, precision, dtype)
    weights = {
        name: round_weight(weight, precision, scale_dtype=dtype, parts=parts[name])
        for name, weight in values.items()
    }
    placed = place_static(half, decisions, weights, ranges, precision)
    return Formed(placed, weights, steps)


def misplaced_forms(model: onnx.ModelProto) -> list[str]:
    """What breaks the rules of a graph whose products have one scale each.

    Written without looking at decisions, as `misplaced`: codes are read by products with a constant
    matrix, or are what such a product writes.
    """
    graph = model.graph
    readers, stored, maker = readers_of(graph), stored_arrays(model), makers_of(graph)

    def is_weight(name: str) -> bool:
        made = maker.get(name)
        return made is not None and made.op_type == "DequantizeLinear" and made.input[0] in stored

    def writes_codes(name: str) -> bool:
        made = maker.get(name)
        return made is not None and made.op_type == "MatMul" and is_weight(made.input[1])

    wrong = misread_codes(graph, {"QuantizeLinear": (0, 2), "DequantizeLinear": (0, 2)})
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            if node.input[0] in stored:
                wrong.append(f"{node.name} quantises a constant at run time")
            wrong += [
                f"{node.name} leads to {reader.op_type} {reader.name}"
                for reader, index in readers.get(node.output[0], [])
                if reader.op_type != "DequantizeLinear" or index
            ]
        elif node.op_type == "DequantizeLinear":
            constant = node.input[0] in stored
            if stored[node.input[1]].shape or node.attribute:
                wrong.append(f"{node.name} has more than one scale")
            if constant and stored[node.input[0]].ndim != 2:
                wrong.append(f"{node.name} dequantises something other than a matrix")
            if not constant and writes_codes(maker[node.input[0]].input[0]):
                continue  # whatever is done with what a product writes
            wrong += [
                f"{node.name} leads to {reader.op_type} {reader.name}"
                for reader, index in readers.get(node.output[0], [])
                if reader.op_type != "MatMul"
                or index != int(constant)
                or not (constant or is_weight(reader.input[1]))
            ]
    return wrong
