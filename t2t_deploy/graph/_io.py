"""Graph inputs and outputs for services: pixels in, probabilities out.

They are added to a finished graph of any precision, 8 bits included, in float32. The logits keep
their name inside, so that a check can expose them again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from t2t_deploy._preparation import ColorOrder, Preparation
from t2t_deploy.errors import ExportError
from t2t_deploy.types import (
    DEFAULT_TOP_K,
    INDICES_NAME,
    INPUT_NAME,
    OUTPUT_NAME,
    PROBABILITIES_NAME,
    GraphIO,
    Tail,
)

NORMALISED_NAME = f"{INPUT_NAME}_normalised"
_PREFIX = "ends"  # in exported files


def with_graph_io(
    model: onnx.ModelProto, graph_io: GraphIO, preparation: Preparation
) -> onnx.ModelProto:
    """A copy of an exported graph with these inputs and outputs; unchanged for `BARE`.

    embed_preprocess: ``image`` becomes (batch, H, W, C) uint8, colours as RGB; it is cast,
    normalised as the preparation says by two operations (x - 255 mean) * 1/(255 std), and
    transposed. tail: ``probabilities`` (batch, classes) float32 replace the logits, of a softmax or
    of a sigmoid, or the k = min(5, classes) largest of a softmax, largest first, with ``indices``
    (batch, k) int64.

    Raises ExportError for a graph with other inputs or outputs than an exported one.
    """
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    if graph_io.embed_preprocess:
        _embed(extended.graph, preparation)
    if graph_io.tail is not Tail.LOGITS:
        _append(extended.graph, graph_io.tail)
    return extended


def without_graph_io(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph without them: normalised pictures in, logits out."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    graph = bare.graph
    inner = [node for node in graph.node if not node.name.startswith(f"{_PREFIX}/")]
    del graph.node[:]
    graph.node.extend(inner)
    stored = [t for t in graph.initializer if not t.name.startswith(f"{_PREFIX}/")]
    del graph.initializer[:]
    graph.initializer.extend(stored)
    (taken,) = graph.input
    if taken.type.tensor_type.elem_type == TensorProto.UINT8:
        _rename_uses(graph, NORMALISED_NAME, INPUT_NAME)
        batch, *sides = taken.type.tensor_type.shape.dim
        height, width, channels = (side.dim_value for side in sides)
        floats = _like(taken, batch, (channels, height, width))
        floats.type.tensor_type.elem_type = TensorProto.FLOAT
        taken.CopyFrom(floats)
    if graph.output[0].name != OUTPUT_NAME:
        logits = _inferred(graph, OUTPUT_NAME)
        del graph.output[:]
        graph.output.append(logits)
    kept = {name for node in graph.node for name in node.output} - {OUTPUT_NAME}
    infos = [info for info in graph.value_info if info.name in kept]
    del graph.value_info[:]
    graph.value_info.extend(infos)
    return bare


def expose_tensors(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy with more outputs, else the same. Raises ExportError for one without a type."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    added = dict.fromkeys(tensors).keys() - {info.name for info in model.graph.output}
    exposed.graph.output.extend(_inferred(model.graph, name) for name in sorted(added))
    kept = [info for info in model.graph.value_info if info.name not in added]
    del exposed.graph.value_info[:]
    exposed.graph.value_info.extend(kept)
    return exposed


def _inferred(graph: onnx.GraphProto, name: str) -> onnx.ValueInfoProto:
    for info in graph.value_info:
        if info.name == name:
            tensor: onnx.ValueInfoProto = info
            return tensor
    raise ExportError(
        f"tensor {name} of the graph has no type; expected one with inferred types: export the "
        "model again"
    )


def _embed(graph: onnx.GraphProto, preparation: Preparation) -> None:
    taken = graph.input[0] if len(graph.input) == 1 else None
    dims = [] if taken is None else list(taken.type.tensor_type.shape.dim)
    sides = tuple(dim.dim_value for dim in dims[1:])
    if taken is None or taken.name != INPUT_NAME or sides != preparation.input_shape:
        expected = ", ".join(map(str, preparation.input_shape))
        raise ExportError(
            f"the graph takes {', '.join(info.name for info in graph.input)}; preprocessing needs "
            f"one input {INPUT_NAME!r} (batch, {expected}): export the model again"
        )
    _rename_uses(graph, INPUT_NAME, NORMALISED_NAME)
    # folded in float64, cast once
    mean, std = (
        preparation.scale * np.array(one, np.float32).astype(np.float64)
        for one in (preparation.mean, preparation.std)
    )
    offset, factor = mean.astype(np.float32), (1 / std).astype(np.float32)
    names = [f"{_PREFIX}/{word}" for word in ("floats", "centred", "scaled", "offset", "factor")]
    floats, centred, scaled, offset_name, factor_name = names
    graph.initializer.append(numpy_helper.from_array(offset, offset_name))
    graph.initializer.append(numpy_helper.from_array(factor, factor_name))
    nodes = [
        _node("Cast", [INPUT_NAME], [floats], to=TensorProto.FLOAT),
        _node("Sub", [floats, offset_name], [centred]),
        _node("Mul", [centred, factor_name], [scaled]),
        _node("Transpose", [scaled], [NORMALISED_NAME], perm=[0, 3, 1, 2]),
    ]
    if preparation.color is ColorOrder.BGR:
        swap, swapped = f"{_PREFIX}/bgr", f"{_PREFIX}/swapped"
        graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), swap))
        nodes.insert(1, _node("Gather", [floats, swap], [swapped], axis=3))
        nodes[2].input[0] = swapped
    rest = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    pixels = _like(taken, dims[0], (*preparation.size, preparation.channels))
    pixels.type.tensor_type.elem_type = TensorProto.UINT8
    taken.CopyFrom(pixels)


def _append(graph: onnx.GraphProto, tail: Tail) -> None:
    only = graph.output[0] if len(graph.output) == 1 else None
    if only is None or only.name != OUTPUT_NAME:
        raise ExportError(
            f"the graph gives {', '.join(info.name for info in graph.output)}; a tail needs "
            f"one output {OUTPUT_NAME!r}: export the model again"
        )
    logits = onnx.ValueInfoProto()
    logits.CopyFrom(only)
    batch, classes = logits.type.tensor_type.shape.dim
    del graph.output[:]
    graph.value_info.append(logits)
    if tail is not Tail.TOPK:
        axis = {"axis": -1} if tail is Tail.SOFTMAX else {}
        graph.node.append(
            _node(tail.value.capitalize(), [OUTPUT_NAME], [PROBABILITIES_NAME], **axis)
        )
        graph.output.append(_like(logits, batch, (classes.dim_value,), PROBABILITIES_NAME))
        return
    k = min(DEFAULT_TOP_K, classes.dim_value)
    every, count = f"{_PREFIX}/{PROBABILITIES_NAME}", f"{_PREFIX}/k"
    graph.initializer.append(numpy_helper.from_array(np.array([k], np.int64), count))
    graph.node.append(_node("Softmax", [OUTPUT_NAME], [every], axis=-1))
    graph.node.append(
        _node("TopK", [every, count], [PROBABILITIES_NAME, INDICES_NAME], axis=-1, sorted=1)
    )
    graph.output.append(_like(logits, batch, (k,), PROBABILITIES_NAME))
    indices = _like(logits, batch, (k,), INDICES_NAME)
    indices.type.tensor_type.elem_type = TensorProto.INT64
    graph.output.append(indices)


def _node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name=f"{_PREFIX}/{op}", **attributes)


def _like(
    info: onnx.ValueInfoProto,
    batch: onnx.TensorShapeProto.Dimension,
    sizes: tuple[int, ...],
    name: str | None = None,
) -> onnx.ValueInfoProto:
    """A tensor of the same type and batch, of other sizes."""
    first: int | str = batch.dim_param if batch.HasField("dim_param") else batch.dim_value
    return helper.make_tensor_value_info(
        name or info.name, info.type.tensor_type.elem_type, [first, *sizes]
    )


def _rename_uses(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
