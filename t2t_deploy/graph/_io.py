"""What stands around a graph: its inputs and outputs, and the names of classes in its metadata."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from t2t_deploy._preparation import ColorOrder, Preparation
from t2t_deploy.errors import ArtifactError, ExportError
from t2t_deploy.graph._file import read_onnx
from t2t_deploy.types import (
    DEFAULT_TOP_K,
    INDICES_NAME,
    INPUT_NAME,
    OUTPUT_NAME,
    PROBABILITIES_NAME,
    UNIT_NAME,
    GraphIO,
    Tail,
)

NORMALISED_NAME = f"{INPUT_NAME}_normalised"
_PREFIX = "ends"  # in exported files


def with_graph_io(
    model: onnx.ModelProto, graph_io: GraphIO, preparation: Preparation
) -> onnx.ModelProto:
    """A copy of an exported graph with these inputs and outputs; unchanged for `BARE`.

    They are added in float32 to a graph of any precision. The logits keep their name inside.

    embed_preprocess: ``image`` becomes (batch, H, W, C) uint8, colours as RGB; it is cast,
    normalised as the preparation says by two operations (x - 255 mean) * 1/(255 std), and
    transposed. tail: ``probabilities`` (batch, classes) float32 replace the logits, of a softmax or
    of a sigmoid, or the k = min(5, classes) largest of a softmax, largest first, with ``indices``
    (batch, k) int64; or ``unit_embedding`` (batch, channels), of length 1, replaces the embedding.

    Raises ExportError for a graph with other inputs or outputs than an exported one.
    """
    extended = copy.deepcopy(model)
    if graph_io.embed_preprocess:
        _embed(extended.graph, preparation)
    if graph_io.tail.appended:
        _append(extended.graph, graph_io.tail)
    return extended


def without_graph_io(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph without them: normalised pictures in, logits out."""
    bare = copy.deepcopy(model)
    graph = bare.graph
    for items in (graph.node, graph.initializer):
        for index in reversed(range(len(items))):
            if items[index].name.startswith(f"{_PREFIX}/"):
                del items[index]
    (taken,) = graph.input
    if taken.type.tensor_type.elem_type == TensorProto.UINT8:
        _rename_uses(graph, NORMALISED_NAME, INPUT_NAME)
        batch, *sides = taken.type.tensor_type.shape.dim
        height, width, channels = (side.dim_value for side in sides)
        taken.CopyFrom(_tensor(INPUT_NAME, TensorProto.FLOAT, batch, (channels, height, width)))
    hidden = {PROBABILITIES_NAME: OUTPUT_NAME, UNIT_NAME: Tail.EMBEDDING.value}
    inside = hidden.get(graph.output[0].name)
    if inside is not None:
        own = _inferred(graph, inside)
        del graph.output[:]
        graph.output.append(own)
    kept = {name for node in graph.node for name in node.output} - {inside}
    infos = [info for info in graph.value_info if info.name in kept]
    del graph.value_info[:]
    graph.value_info.extend(infos)
    return bare


def expose_tensors(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy with more outputs, else the same. Raises ExportError for one without a type."""
    exposed = copy.deepcopy(model)
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
    for index, node in enumerate(nodes):
        graph.node.insert(index, node)
    sizes = (*preparation.size, preparation.channels)
    taken.CopyFrom(_tensor(INPUT_NAME, TensorProto.UINT8, dims[0], sizes))


def _append(graph: onnx.GraphProto, tail: Tail) -> None:
    only = graph.output[0] if len(graph.output) == 1 else None
    if only is None or only.name != tail.output:
        raise ExportError(
            f"the graph gives {', '.join(info.name for info in graph.output)}; the tail "
            f"{tail.value} needs one output {tail.output!r}: export the model again"
        )
    graph.value_info.append(only)
    del graph.output[:]
    kind = graph.value_info[-1].type.tensor_type
    batch, classes = kind.shape.dim
    if tail is Tail.UNIT_EMBEDDING:
        _append_unit_embedding(graph, tail.output)
        graph.output.append(_tensor(UNIT_NAME, kind.elem_type, batch, (classes.dim_value,)))
        return
    ranked = tail is Tail.TOPK
    every = f"{_PREFIX}/{PROBABILITIES_NAME}" if ranked else PROBABILITIES_NAME
    graph.node.append(
        _node("Sigmoid", [OUTPUT_NAME], [every])
        if tail is Tail.SIGMOID
        else _node("Softmax", [OUTPUT_NAME], [every], axis=-1)
    )
    k = min(DEFAULT_TOP_K, classes.dim_value) if ranked else classes.dim_value
    graph.output.append(_tensor(PROBABILITIES_NAME, kind.elem_type, batch, (k,)))
    if ranked:
        count = f"{_PREFIX}/k"
        graph.initializer.append(numpy_helper.from_array(np.array([k], np.int64), count))
        outputs = [PROBABILITIES_NAME, INDICES_NAME]
        graph.node.append(_node("TopK", [every, count], outputs, axis=-1, sorted=1))
        graph.output.append(_tensor(INDICES_NAME, TensorProto.INT64, batch, (k,)))


def _append_unit_embedding(graph: onnx.GraphProto, embedding: str) -> None:
    """x / max(||x||, 1e-12), as torch.nn.functional.normalize."""
    names = ("squares", "axes", "sum", "least", "positive", "length")
    squares, axes, total, least, positive, length = (f"{_PREFIX}/{name}" for name in names)
    graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), axes))
    graph.initializer.append(numpy_helper.from_array(np.array(1e-24, np.float32), least))
    graph.node.extend(
        [
            _node("Mul", [embedding, embedding], [squares]),
            _node("ReduceSum", [squares, axes], [total], keepdims=1),
            _node("Max", [total, least], [positive]),
            _node("Sqrt", [positive], [length]),
            _node("Div", [embedding, length], [UNIT_NAME]),
        ]
    )


def _node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name=f"{_PREFIX}/{op}", **attributes)


def _tensor(
    name: str, kind: int, batch: onnx.TensorShapeProto.Dimension, sizes: tuple[int, ...]
) -> onnx.ValueInfoProto:
    first: int | str = batch.dim_param if batch.HasField("dim_param") else batch.dim_value
    return helper.make_tensor_value_info(name, kind, [first, *sizes])


def _rename_uses(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


_KEY = "class_names"


def with_class_names(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy whose ``metadata_props`` have the names, a JSON list in the order of the classes."""
    named = onnx.ModelProto()
    named.CopyFrom(model)
    kept = {one.key: one.value for one in model.metadata_props if one.key != _KEY}
    onnx.helper.set_model_props(named, {**kept, _KEY: json.dumps(list(names), ensure_ascii=False)})
    return named


def class_names_in(path: Path) -> tuple[str, ...] | None:
    """Those of a file, which need not be ours; None where it has none that can be read."""
    try:
        props = {one.key: one.value for one in read_onnx(path).metadata_props}
        names = json.loads(props.get(_KEY, "null"))
    except (ArtifactError, ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        return None
    named = bool(names) and all(one and "\n" not in one and "\r" not in one for one in names)
    return tuple(names) if named else None
