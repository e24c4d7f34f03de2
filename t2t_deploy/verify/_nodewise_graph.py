"""A typed ONNX graph evaluated one node at a time, each result rounded to its tensor's type.

Why not the whole graph: ONNX Runtime's CPU provider runs chains of fp16 nodes in float32, so that a
value beyond 65504 passes unseen, and it has no bf16 matrix product. Here every node is a model of
its own, computed in float32 on inputs that are exact values of their types, and its result is
rounded to nearest even, to infinity where the type ends. That is float32 accumulation with 16-bit
storage, as on tensor cores.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t2t_deploy._optional import require
from t2t_deploy.errors import ArtifactError, BackendError
from t2t_deploy.runtime import ClosingSession, check_feeds, read_onnx
from t2t_deploy.types import TensorSpec

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """A floating-point type: its largest finite number and its smallest normal one."""

    name: str
    max: float
    smallest_normal: float

    @property
    def dtype(self) -> np.dtype[Any]:
        """As numpy knows it, bfloat16 by the package that onnx brings."""
        import onnx

        code = onnx.TensorProto.DataType.Value(_ONNX_NAMES[self.name])
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))

    def round(self, values: np.ndarray) -> np.ndarray:
        """float32 values as the nearest of this type, ties to even, infinite where it ends."""
        if self.name == "float32":
            return values
        if self.name == "float16":
            result: np.ndarray = _float16_and_back().run(None, {"x": values})[0]
            return result
        with np.errstate(over="ignore", invalid="ignore"):
            return values.astype(self.dtype).astype(np.float32)


# Largest finite and smallest normal number, IEEE 754 binary32 and binary16, and bfloat16.
FLOAT32 = FloatFormat("float32", float(np.finfo(np.float32).max), 2.0**-126)
FLOAT16 = FloatFormat("float16", 65504.0, 2.0**-14)
BFLOAT16 = FloatFormat("bfloat16", (2 - 2.0**-7) * 2.0**127, 2.0**-126)
_ONNX_NAMES = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}
_FORMATS = {_ONNX_NAMES[form.name]: form for form in (FLOAT32, FLOAT16, BFLOAT16)}
_OTHERS = frozenset(
    {"BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"}
)
# Attributes that hold an element type.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype"})


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
            f"the graph's types do not fit together ({_first_line(err)}); export the model again"
        ) from err
    graph = model.graph
    if model.functions:
        raise ArtifactError(
            f"the graph holds {len(model.functions)} functions; node by node takes plain "
            "operators: inline them first"
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
    floats = {name for name, code in types.items() if _type_name(code) in _FORMATS}
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
    ends: dict[int, list[str]] = {}
    for tensor, index in readers.items():
        if tensor not in kept:
            ends.setdefault(index, []).append(tensor)
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
            formats=tuple(_FORMATS.get(_type_name(types[output])) for output in outputs),
            last_use=tuple(ends.get(index, ())),
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
    found = _type_name(code)
    if found in _FORMATS or found in _OTHERS:
        return
    where = "a stored tensor" if node is None else f"a result of {node.op_type}"
    expected = "" if code else " that could be inferred"
    raise ArtifactError(
        f"tensor {name!r}, {where}, has {'type ' + found if code else 'no type'}{expected}; node "
        f"by node takes {', '.join(_FORMATS)}, integers and BOOL: verify this file without it"
    )


def _type_name(code: int) -> str:
    import onnx

    return str(onnx.TensorProto.DataType.Name(code))


def _spec(info: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    kind = info.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return TensorSpec(info.name, str(dtype), shape)


class NodeKernels:
    """ONNX Runtime sessions of single nodes, float32 or float64, made when first asked for.

    Nodes of the same operator, attributes and types share one: its inputs have no fixed shape.
    """

    def __init__(self, graph: TypedGraph, *, threads: int | None = None) -> None:
        self._ort: Any = require("onnxruntime")
        self._graph = graph
        self._sessions: dict[tuple[object, ...], Any] = {}
        self._options: Any = self._ort.SessionOptions()
        self._options.log_severity_level = 4
        self._options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Each session has its own threads: those that wait must not take the cores.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            self._options.intra_op_num_threads = threads
        self.float32_ops: set[str] = set()
        """Operators computed in float32 although float64 was asked for: there is no kernel."""

    def run(
        self, step: Step, arrays: Sequence[np.ndarray | None], wide: type[np.floating[Any]]
    ) -> list[np.ndarray]:
        """A node's outputs, its floats computed in float32 or float64 and not rounded.

        arrays: one per input, floats already of type ``wide``, None where one is left out.
        Raises ArtifactError naming the node where ONNX Runtime cannot run it.
        """
        if wide is np.float64 and step.op not in self.float32_ops:
            try:
                return self._run(step, arrays, wide)
            except ArtifactError:
                self.float32_ops.add(step.op)
        if wide is np.float64:
            narrow = [_as(array, np.float32) for array in arrays]
            return [
                array.astype(np.float64) if array.dtype == np.float32 else array
                for array in self._run(step, narrow, np.float32)
            ]
        return self._run(step, arrays, wide)

    def _run(
        self, step: Step, arrays: Sequence[np.ndarray | None], wide: type[np.floating[Any]]
    ) -> list[np.ndarray]:
        given = tuple(None if array is None else array.dtype.num for array in arrays)
        attributes = tuple(a.SerializeToString(deterministic=True) for a in step.node.attribute)
        used = tuple(bool(name) for name in step.node.output)
        key = (step.node.domain, step.op, attributes, given, used, step.formats, wide)
        feeds = {f"x{i}": array for i, array in enumerate(arrays) if array is not None}
        try:
            session = self._sessions.get(key)
            if session is None:
                model = self._model(step, arrays, wide)
                session = self._ort.InferenceSession(
                    model.SerializeToString(), self._options, providers=["CPUExecutionProvider"]
                )
                self._sessions[key] = session
            results: list[np.ndarray] = session.run(None, feeds)
        except Exception as err:
            # onnxruntime's errors share no public base class.
            if not type(err).__module__.startswith("onnxruntime"):
                raise
            raise ArtifactError(
                f"node {step.name!r} ({step.op}) does not run in ONNX Runtime in "
                f"{np.dtype(wide).name}: {_first_line(err)}; verify this file without --nodewise"
            ) from err
        return [np.asarray(result) for result in results]

    def _model(
        self, step: Step, arrays: Sequence[np.ndarray | None], wide: type[np.floating[Any]]
    ) -> onnx.ModelProto:
        import onnx
        from onnx import helper

        node = onnx.NodeProto()
        node.CopyFrom(step.node)
        del node.input[:], node.output[:]
        node.input.extend("" if array is None else f"x{i}" for i, array in enumerate(arrays))
        node.output.extend(f"y{i}" if name else "" for i, name in enumerate(step.node.output))
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and _type_name(attribute.i) in _FORMATS:
                attribute.i = helper.np_dtype_to_tensor_dtype(np.dtype(wide))
            if attribute.HasField("t") and _type_name(attribute.t.data_type) in _FORMATS:
                value = onnx.numpy_helper.to_array(attribute.t).astype(wide)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(value))
        inputs = [
            helper.make_tensor_value_info(
                f"x{i}", helper.np_dtype_to_tensor_dtype(array.dtype), None
            )
            for i, array in enumerate(arrays)
            if array is not None
        ]
        # Without a type: ONNX Runtime infers it.
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], "node", inputs, outputs)
        opsets = [helper.make_opsetid(name, v) for name, v in self._graph.opsets.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=self._graph.ir_version)


class Evaluation:
    """The tensors of one run through a graph; a tensor is freed after its last use.

    wide: np.float32 for the run that is rounded after every node; np.float64, where ONNX Runtime
    has such kernels, for the one that is never rounded.
    """

    def __init__(
        self, graph: TypedGraph, kernels: NodeKernels, wide: type[np.floating[Any]]
    ) -> None:
        self._graph = graph
        self._kernels = kernels
        self._wide = wide
        self._values: dict[str, np.ndarray] = {}

    def start(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Take the graph's inputs. Raises InputError where one does not fit."""
        check_feeds(self._graph.inputs, feeds)
        self._values = dict(feeds)

    def compute(self, step: Step) -> list[np.ndarray]:
        """What a node computes from the values at hand, before any rounding."""
        arrays = [self._value(name) if name else None for name in step.inputs]
        return self._kernels.run(step, arrays, self._wide)

    def keep(self, step: Step, results: Sequence[np.ndarray]) -> None:
        """Store a node's outputs and free what nobody reads any more."""
        self._values.update(zip(step.outputs, results, strict=True))
        for name in step.last_use:
            self._values.pop(name, None)

    def results(self) -> dict[str, np.ndarray]:
        """The graph's outputs."""
        return {spec.name: self._value(spec.name) for spec in self._graph.outputs}

    def _value(self, name: str) -> np.ndarray:
        value = self._values[name] if name in self._values else self._graph.constants[name]
        return value.astype(self._wide, copy=False) if name in self._graph.floats else value


def rounded(step: Step, computed: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A node's outputs as their types hold them, floats kept in float32."""
    return [
        array if form is None else form.round(array)
        for form, array in zip(step.formats, computed, strict=True)
    ]


class NodewiseSession(ClosingSession):
    """A typed graph as a `Session` that rounds after every node.

    Several times slower than a runtime, and right about overflow and bf16. Raises
    ArtifactError where the graph cannot be evaluated node by node.
    """

    backend = "nodewise"

    def __init__(self, source: Path | onnx.ModelProto, *, threads: int | None = None) -> None:
        graph = typed_graph_from_onnx(source)
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self._graph: TypedGraph | None = graph
        self._kernels = NodeKernels(graph, threads=threads)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs. Raises InputError, or BackendError on a closed session."""
        if self._graph is None:
            raise BackendError("the session is closed; open a new one")
        run = Evaluation(self._graph, self._kernels, np.float32)
        run.start(feeds)
        for step in self._graph.steps:
            run.keep(step, rounded(step, run.compute(step)))
        return run.results()

    def close(self) -> None:
        """Free the graph."""
        self._graph = None


def _as(array: np.ndarray | None, dtype: type[np.floating[Any]]) -> np.ndarray | None:
    return array.astype(dtype) if array is not None and array.dtype == np.float64 else array


def _first_line(err: Exception) -> str:
    return (str(err).strip().splitlines() or [type(err).__name__])[0]
