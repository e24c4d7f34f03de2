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


def model_of(
    nodes: Iterable[onnx.NodeProto],
    weights: Iterable[TensorProto],
    shape_in: Shape,
    shape_out: Shape,
    *,
    opset: int = 18,
) -> onnx.ModelProto:
    """Dimensions with a name are free."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape_in)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape_out)
    graph = helper.make_graph(list(nodes), "graph", [image], [logits], list(weights))
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def save_model(path: Path, *parts: Any, opset: int = 18) -> Path:
    """The file of `model_of`."""
    onnx.save(model_of(*parts, opset=opset), path)
    return path


def parsed(graph: str, *, opset: int = 18) -> onnx.ModelProto:
    """The model of a graph, and of functions behind it, in the text form of ONNX."""
    opsets = f'"": {opset}, "local": 1' if "local." in graph else f'"": {opset}'
    return onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{opsets}]> {graph}")
