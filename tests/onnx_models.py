"""Small ONNX models from ``image`` to ``logits``, both float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str]


def constants(values: Mapping[str, Any]) -> list[TensorProto]:
    """Arrays and numpy scalars by name."""
    return [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]


def graph_model(
    nodes: Iterable[onnx.NodeProto],
    weights: Iterable[TensorProto],
    inputs: Mapping[str, Shape | None],
    outputs: Mapping[str, Shape | None],
    *,
    opset: int = 18,
    types: tuple[int, int] = (TensorProto.FLOAT, TensorProto.FLOAT),
) -> onnx.ModelProto:
    """Shapes by name, whose named dimensions are free. types: of the inputs and the outputs."""
    read, made = (
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
        for kind, shapes in zip(types, (inputs, outputs), strict=True)
    )
    graph = helper.make_graph(list(nodes), "graph", read, made, list(weights))
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def model_of(
    nodes: Iterable[onnx.NodeProto],
    weights: Iterable[TensorProto],
    shape_in: Shape,
    shape_out: Shape,
    *,
    opset: int = 18,
) -> onnx.ModelProto:
    """Of one image; dimensions with a name are free."""
    return graph_model(nodes, weights, {"image": shape_in}, {"logits": shape_out}, opset=opset)


def save_model(path: Path, *parts: Any, opset: int = 18) -> Path:
    """The file of `model_of`."""
    onnx.save(model_of(*parts, opset=opset), path)
    return path


def parsed(graph: str, *, opset: int = 18) -> onnx.ModelProto:
    """The model of a graph, and of functions behind it, in the text form of ONNX."""
    opsets = f'"": {opset}, "local": 1' if "local." in graph else f'"": {opset}'
    return onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{opsets}]> {graph}")


def int8_product(path: Path, codes: np.ndarray, weight_scale: float, scale: float = 1 / 32) -> Path:
    """logits = dequantised(image) @ dequantised(codes): a static Q/DQ graph, its batch free."""
    values = {
        "weight": codes.astype(np.int8),
        "weight_scale": np.float32(weight_scale),
        "scale": np.float32(scale),
        "zero": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "zero"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["logits"]),
    ]
    return save_model(path, nodes, constants(values), ["N", len(codes)], ["N", codes.shape[1]])
