"""Quantised graphs, and what breaks the rule of where 8-bit operators stand."""

from __future__ import annotations

import functools

import onnx

from t2t_deploy.calibration import (
    SIGNED,
    CodeStorage,
    QuantizedGraph,
    place_dynamic,
    place_static,
    stored_arrays,
)
from t2t_deploy.types import Precision, Target

from .conftest import chosen, decisions_of, pictures, ranges_of, rounded_weights, tiny

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
    storage: CodeStorage = SIGNED,
) -> QuantizedGraph:
    model = tiny(kind, target, base, opset)
    # sources are named alike in the 16-bit twin only where no cast stands before them
    known = tiny_ranges(kind, target) if base is Precision.FP32 else {}
    ranges = {layer.source: known.get(layer.source, 4.0) for layer in chosen(decisions_of(model))}
    weights = rounded_weights(model, precision)
    return place_static(model, decisions_of(model), weights, ranges, precision, storage)


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


def misplaced(model: onnx.ModelProto) -> list[str]:
    """What breaks the rule that 8 bits lead to products with a constant weight, and nowhere else.

    Written without looking at decisions: it knows the two forms of a layer, and what is not one of
    them is misplaced.
    """
    graph = model.graph
    readers, stored = readers_of(graph), stored_arrays(model)
    maker = {name: node for node in graph.node for name in node.output}
    wrong = [
        f"{name} is read as a number and stored in 8 bits by {reader.op_type} {reader.name}"
        for name, value in stored.items()
        for reader, index in readers.get(name, [])
        if value.dtype.itemsize == 1
        and not (reader.op_type in (*QUANTIZERS, "DequantizeLinear") and index in (0, 2))
        and not (reader.op_type == "MatMulInteger" and index in (1, 3))
    ]
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
