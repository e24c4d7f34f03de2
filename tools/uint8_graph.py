"""A classifier that takes uint8 pixels: an exported graph with the normalisation put before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from t2t_deploy.images import MEAN, STD

INPUT_NAME = "pixels"


def write_uint8_graph(source: Path, path: Path) -> Path:
    """(N, 3, S, S) float32 -> (N, S, S, 3) uint8; the rest of the graph stays as it is."""
    model = onnx.load(source)
    graph = model.graph
    (picture,) = graph.input
    batch, _, height, width = picture.type.tensor_type.shape.dim
    dims = [batch.dim_param or batch.dim_value, height.dim_value, width.dim_value, 3]
    nodes = [
        helper.make_node("Cast", [INPUT_NAME], ["pixels_float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["pixels_float", "pixels_mean"], ["pixels_centred"]),
        helper.make_node("Mul", ["pixels_centred", "pixels_scale"], ["pixels_scaled"]),
        helper.make_node("Transpose", ["pixels_scaled"], [picture.name], perm=[0, 3, 1, 2]),
    ]
    for offset, node in enumerate(nodes):
        graph.node.insert(offset, node)
    for name, values in (("pixels_mean", MEAN * 255), ("pixels_scale", 1 / (STD * 255))):
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    picture.CopyFrom(helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, dims))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
