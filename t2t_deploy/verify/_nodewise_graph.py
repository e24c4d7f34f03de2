"""A typed ONNX graph as steps, one node each, to be evaluated in their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from t2t_deploy._untrusted import first_line
from t2t_deploy.errors import ArtifactError, counted
from t2t_deploy.graph import read_onnx
from t2t_deploy.types import TensorSpec
from t2t_deploy.verify._float_format import FORMATS, FloatFormat, float_format

if TYPE_CHECKING:
    import onnx

_OTHERS = frozenset(
    {
        "BOOL",
        "FLOAT8E4M3FN",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
    }
)


@dataclass(frozen=True, slots=True)
class Step:
    """One node. outputs: those that are used, by their place among the node's outputs.

    formats: of each output, None where it is no float. last_use: tensors nobody reads after it.
    """

    name: str
    op: str
    node: onnx.NodeProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    formats: tuple[FloatFormat | None, ...]
    last_use: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TypedGraph:
    """A graph in the order of evaluation, every tensor's type known.

    constants: the stored tensors in their stored types. floats: the names of all float tensors.
    """

    steps: tuple[Step, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    constants: Mapping[str, np.ndarray]
    floats: frozenset[str]
    opsets: Mapping[str, int]
    ir_version: int


def typed_graph_from_onnx(source: Path | onnx.ModelProto) -> TypedGraph:
    """Read a graph. Raises ArtifactError where it cannot be evaluated node by node, saying why."""
    import onnx

    model = _load(source) if isinstance(source, Path) else source
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as err:
        raise ArtifactError(
            f"the graph's types do not fit together ({first_line(err)}); export the model again"
        ) from err
    graph = model.graph
    if model.functions:
        raise ArtifactError(
            f"the graph holds {counted(len(model.functions), 'function')}; node by node takes "
            "plain operators: inline them first"
        )
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for info in (*graph.value_info, *graph.input, *graph.output):
        types[info.name] = info.type.tensor_type.elem_type
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    stored = frozenset(constants)
    nodes = []
    for index, node in enumerate(graph.node):
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant(node)
        else:
            nodes.append((node.name or f"{node.op_type}_{index}", node))
        for name in node.output:
            if name:
                _check_type(types.get(name, 0), name, node)
    for name in stored:
        _check_type(types[name], name, None)
    floats = {name for name, code in types.items() if float_format(code) is not None}
    return TypedGraph(
        steps=tuple(_steps(nodes, types, {info.name for info in graph.output})),
        inputs=tuple(_spec(info) for info in graph.input if info.name not in stored),
        outputs=tuple(_spec(info) for info in graph.output),
        constants=constants,
        floats=frozenset(floats),
        opsets={entry.domain: entry.version for entry in model.opset_import},
        ir_version=model.ir_version,
    )


def _load(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ArtifactError(f"there is no file {path}; export the model first")
    return read_onnx(path, external_data=True)


def _steps(
    nodes: Sequence[tuple[str, onnx.NodeProto]], types: Mapping[str, int], kept: set[str]
) -> Iterator[Step]:
    readers: dict[str, int] = {}
    for index, (_, node) in enumerate(nodes):
        readers |= {name: index for name in (*node.input, *node.output) if name}
    graph_io: dict[int, list[str]] = {}
    for tensor, index in readers.items():
        if tensor not in kept:
            graph_io.setdefault(index, []).append(tensor)
    for index, (name, node) in enumerate(nodes):
        nested = [a.name for a in node.attribute if a.HasField("g") or a.graphs]
        if nested:
            raise ArtifactError(
                f"node {name!r} ({node.op_type}) holds a subgraph; node by node takes plain "
                "operators: export the model without control flow"
            )
        outputs = tuple(output for output in node.output if output)
        yield Step(
            name=name,
            op=node.op_type,
            node=node,
            inputs=tuple(node.input),
            outputs=outputs,
            formats=tuple(float_format(types[output]) for output in outputs),
            last_use=tuple(graph_io.get(index, ())),
        )


def _constant(node: onnx.NodeProto) -> np.ndarray:
    import onnx

    (attribute,) = node.attribute
    if attribute.name == "value":
        return onnx.numpy_helper.to_array(attribute.t)
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    if attribute.name in ("value_int", "value_ints"):
        return np.asarray(value, np.int64)
    raise ArtifactError(
        f"constant {node.output[0]!r} is given as {attribute.name}; node by node takes numbers: "
        "export the model again"
    )


def _check_type(code: int, name: str, node: onnx.NodeProto | None) -> None:
    import onnx

    found = onnx.TensorProto.DataType.Name(code)
    if found in FORMATS or found in _OTHERS:
        return
    where = "a stored tensor" if node is None else f"a result of {node.op_type}"
    expected = "" if code else " that could be inferred"
    raise ArtifactError(
        f"tensor {name!r}, {where}, has {'type ' + found if code else 'no type'}{expected}; node "
        f"by node takes {', '.join(FORMATS)}, integers and BOOL: verify this file without it"
    )


def _spec(info: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    kind = info.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return TensorSpec(info.name, str(dtype), shape)
