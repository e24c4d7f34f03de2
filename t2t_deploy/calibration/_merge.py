"""One product instead of several that read the same codes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

_WEIGHT = "/weight"


def merge_readers(model: onnx.ModelProto) -> None:
    """Merge the products that read one QuantizeLinear, and split the columns of their result.

        codes -> MatMul [q | k | v] -> Split -> q, k, v

    ONNX Runtime (1.32) computes signed codes in float where several products read them; the numbers
    are the same. Products with a scale for each column only; tensors keep their names.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    groups: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        operands = [producers.get(name) for name in node.input[:2]]
        if node.op_type != "MatMul" or not all(_dequantizes(one) for one in operands):
            continue
        codes = producers.get(operands[0].input[0])  # type: ignore[union-attr]
        if codes is not None and codes.op_type == "QuantizeLinear":
            groups.setdefault(codes.output[0], []).append(node)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for products in groups.values():
        weights = [producers[node.input[1]] for node in products]
        if len(products) > 1 and all(stored[one.input[1]].dims for one in weights):
            _merge(graph, products, weights, producers, stored)


def _dequantizes(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear"


def _merge(
    graph: onnx.GraphProto,
    products: list[onnx.NodeProto],
    weights: list[onnx.NodeProto],
    producers: dict[str, onnx.NodeProto],
    stored: dict[str, onnx.TensorProto],
) -> None:
    layers = [one.output[0].removesuffix(_WEIGHT) for one in weights]
    name = "+".join([layers[0], *(layer.rpartition(".")[2] for layer in layers[1:])])

    def constant(part: str, value: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(value, f"{name}/{part}"))
        return f"{name}/{part}"

    def side_by_side(part: str, index: int) -> str:
        parts = [numpy_helper.to_array(stored[one.input[index]]) for one in weights]
        return constant(part, np.concatenate(parts, axis=-1))

    operands = [side_by_side("codes", 0), side_by_side("scale", 1), side_by_side("zero", 2)]
    widths = np.array([stored[one.input[0]].dims[1] for one in weights], np.int64)
    results = [node.output[0] for node in products]
    read = products[0].input[0]
    made = [
        helper.make_node(
            "DequantizeLinear", operands, [f"{name}{_WEIGHT}"], f"{name}{_WEIGHT}", axis=1
        ),
        helper.make_node(
            "MatMul", [read, f"{name}{_WEIGHT}"], [f"{name}/product"], f"{name}/product"
        ),
        helper.make_node(
            "Split", [f"{name}/product", constant("widths", widths)], results, name, axis=-1
        ),
    ]
    others = {node.input[0] for node in products[1:]}
    gone = {node.name for node in (*products, *weights)}
    gone |= {producers[tensor].name for tensor in others}
    first = products[0].name
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.name == first:
            kept += made
        elif node.name not in gone:
            kept.append(node)
    rebuilt = onnx.GraphProto(node=kept)  # copies, as those of the graph go with it
    del graph.node[:]
    graph.node.extend(rebuilt.node)
    unread = {one.input[index] for one in weights for index in range(3)}
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in unread:
            del graph.initializer[index]
