"""A typed ONNX graph as steps, one node each, in their order, and its floating-point types."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from t2t_deploy._optional import require
from t2t_deploy._untrusted import first_line
from t2t_deploy.errors import ArtifactError, counted
from t2t_deploy.graph import read_onnx
from t2t_deploy.types import GraphIO, TensorSpec

if TYPE_CHECKING:
    import onnx

_OTHERS = frozenset(
    {"BOOL", "FLOAT8E4M3FN"}
    | {f"{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)}
)


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """A floating-point type: its largest finite number and its smallest normal one."""

    name: str
    max: float
    smallest_normal: float

    @classmethod
    def of(cls, name: str) -> FloatFormat:
        """The type that numpy, with ml_dtypes, has by this name."""
        info: Any = ml_dtypes.finfo(np.dtype(name))  # type: ignore[no-untyped-call]
        return cls(name, float(info.max), float(info.smallest_normal))

    @property
    def dtype(self) -> np.dtype[Any]:
        """As numpy knows it."""
        return np.dtype(self.name)

    def round(self, values: np.ndarray) -> np.ndarray:
        """float32 values as the nearest of this type, ties to even, infinite where it ends."""
        if self.name == "float32":
            return values
        if self.name == "float16":
            result: np.ndarray = _float16_and_back().run(None, {"x": values})[0]
            return result
        with np.errstate(over="ignore", invalid="ignore"):
            return values.astype(self.dtype).astype(np.float32)


FLOAT32, FLOAT16, BFLOAT16 = map(FloatFormat.of, ("float32", "float16", "bfloat16"))
FORMATS = {"FLOAT": FLOAT32, "FLOAT16": FLOAT16, "BFLOAT16": BFLOAT16}
"""By the names that ONNX has for them."""


def float_format(code: int) -> FloatFormat | None:
    """What ONNX's code of an element type stands for; None where it is no float of these."""
    import onnx

    return FORMATS.get(onnx.TensorProto.DataType.Name(code))


@functools.cache
def _float16_and_back() -> Any:
    """ONNX Runtime's two casts, which are the processor's: 0.5 ns a number.

    numpy's own take 7, and 90 where the result is subnormal.
    """
    import onnx
    from onnx import helper

    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=half),
        helper.make_node("Cast", ["half"], ["y"], to=single),
    ]
    x, y = (helper.make_tensor_value_info(name, single, None) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "round", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ort: Any = require("onnxruntime")
    options = ort.SessionOptions()
    # So that no release takes the pair for one that does nothing.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@dataclass(frozen=True, slots=True)
class Step:
    """One node. outputs: those that are used, in the node's order.

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

    from t2t_deploy.graph import tensor_spec

    if not isinstance(source, Path):
        model = source
    elif source.is_file():
        model = read_onnx(source, external_data=True)
    else:
        raise ArtifactError(f"there is no file {source}; export the model first")
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
        inputs=tuple(tensor_spec(info) for info in graph.input if info.name not in stored),
        outputs=tuple(tensor_spec(info) for info in graph.output),
        constants=constants,
        floats=frozenset(floats),
        opsets={entry.domain: entry.version for entry in model.opset_import},
        ir_version=model.ir_version,
    )


def bare_graph(path: Path, graph_io: GraphIO) -> Path | onnx.ModelProto:
    """A file, or, of one with a service's inputs and outputs, the graph without them."""
    if graph_io.bare:
        return path
    from t2t_deploy.graph import without_graph_io

    return without_graph_io(read_onnx(path, external_data=True))


def _steps(
    nodes: Sequence[tuple[str, onnx.NodeProto]], types: Mapping[str, int], kept: set[str]
) -> Iterator[Step]:
    readers: dict[str, int] = {}
    for index, (_, node) in enumerate(nodes):
        readers |= {name: index for name in (*node.input, *node.output) if name}
    last_uses: dict[int, list[str]] = {}
    for tensor, index in readers.items():
        if tensor not in kept:
            last_uses.setdefault(index, []).append(tensor)
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
            last_use=tuple(last_uses.get(index, ())),
        )


def _constant(node: onnx.NodeProto) -> np.ndarray:
    import onnx

    (attribute,) = node.attribute
    if attribute.name == "value":
        return onnx.numpy_helper.to_array(attribute.t)
    dtype = {"value_float": np.float32, "value_int": np.int64}.get(attribute.name.removesuffix("s"))
    if dtype is None:
        raise ArtifactError(
            f"constant {node.output[0]!r} is given as {attribute.name}; node by node takes "
            "numbers: export the model again"
        )
    return np.asarray(onnx.helper.get_attribute_value(attribute), dtype)


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
