"""A typed ONNX graph evaluated one node at a time, each result rounded to its tensor's type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from t2t_deploy._optional import require
from t2t_deploy._untrusted import first_line
from t2t_deploy.errors import ArtifactError, BackendError
from t2t_deploy.graph import read_onnx
from t2t_deploy.runtime import Session, check_feeds, session_threads
from t2t_deploy.types import INPUT_NAME
from t2t_deploy.verify._typed_graph import Step, TypedGraph, float_format, typed_graph_from_onnx

if TYPE_CHECKING:
    import onnx


@dataclass(slots=True)
class Evaluation:
    """The tensors of one run through a graph; a tensor is freed after its last use.

    wide: np.float32 for the run that is rounded after every node; np.float64, where ONNX Runtime
    has such kernels, for the one that is never rounded.
    """

    graph: TypedGraph
    kernels: NodeKernels
    wide: type[np.floating[Any]]
    _values: dict[str, np.ndarray] = field(default_factory=dict)

    def start(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Take the graph's inputs. Raises InputError where one does not fit."""
        check_feeds(self.graph.inputs, feeds)
        self._values = dict(feeds)

    def compute(self, step: Step) -> list[np.ndarray]:
        """What a node computes from the values at hand, before any rounding."""
        arrays = [self._value(name) if name else None for name in step.inputs]
        return self.kernels.run(step, arrays, self.wide)

    def keep(self, step: Step, results: Sequence[np.ndarray]) -> None:
        """Store a node's outputs and free what nobody reads any more."""
        self._values.update(zip(step.outputs, results, strict=True))
        for name in step.last_use:
            self._values.pop(name, None)

    def results(self) -> dict[str, np.ndarray]:
        """The graph's outputs."""
        return {spec.name: self._value(spec.name) for spec in self.graph.outputs}

    def _value(self, name: str) -> np.ndarray:
        value = self._values[name] if name in self._values else self.graph.constants[name]
        return value.astype(self.wide, copy=False) if name in self.graph.floats else value


def rounded(step: Step, computed: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A node's outputs as their types hold them, floats kept in float32."""
    return [
        array if form is None else form.round(array)
        for form, array in zip(step.formats, computed, strict=True)
    ]


class NodewiseSession(Session):
    """A typed graph as a `Session` that rounds after every node.

    Several times slower than a runtime, and right about overflow and bf16: ONNX Runtime's CPU
    provider runs chains of fp16 nodes in float32, so that a value beyond 65504 passes unseen, and
    has no bf16 matrix product. Here every node is computed in float32 on inputs that are exact
    values of their types, and its result is rounded to nearest even, to infinity where the type
    ends: float32 accumulation with 16-bit storage, as on tensor cores. Raises ArtifactError where
    the graph cannot be evaluated so.
    """

    backend = "nodewise"

    def __init__(self, source: Path | onnx.ModelProto) -> None:
        graph = typed_graph_from_onnx(source)
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self._graph: TypedGraph | None = graph
        self._kernels = NodeKernels(graph)

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


def stored_non_finite(model: onnx.ModelProto) -> tuple[str, ...]:
    """Stored tensors of a graph that hold NaN or infinity."""
    import onnx

    found = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if "float" in values.dtype.name and not np.isfinite(values.astype(np.float32)).all():
            found.append(tensor.name)
    return tuple(found)


def why_non_finite(source: Path, picture: np.ndarray) -> str | None:
    """Which tensor of a file is the first with NaN or infinity, given what its input takes.

    source: an ONNX file; picture: (n, 3, S, S) float32 or (n, S, S, 3) uint8. None where every
    tensor is finite, or the graph cannot be evaluated node by node.
    """
    model = read_onnx(source, external_data=True)
    stored = stored_non_finite(model)
    if stored:
        return f"NaN or infinity is stored in {', '.join(stored[:3])}"
    try:
        graph = typed_graph_from_onnx(model)
        run = Evaluation(graph, NodeKernels(graph), np.float32)
        run.start({INPUT_NAME: picture})
        for step in graph.steps:
            results = rounded(step, run.compute(step))
            for tensor, form, values in zip(step.outputs, step.formats, results, strict=True):
                if form is not None and not np.isfinite(values).all():
                    bad = int(values.size - np.isfinite(values).sum())
                    return f"{bad} numbers are so first in tensor {tensor} ({step.op})"
            run.keep(step, results)
    except ArtifactError:
        return None
    return None


_FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
# Attributes that hold an element type.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype"})


class NodeKernels:
    """ONNX Runtime sessions of single nodes, float32 or float64, made when first asked for.

    Nodes of the same operator, attributes and types share one: its inputs have no fixed shape.
    """

    def __init__(self, graph: TypedGraph) -> None:
        self._ort: Any = require("onnxruntime")
        self._graph = graph
        self._sessions: dict[tuple[object, ...], Any] = {}
        self._options: Any = self._ort.SessionOptions()
        self._options.log_severity_level = 4
        self._options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._options.intra_op_num_threads = session_threads(None) or 0
        # Each session has its own threads: those that wait must not take the cores.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.float32_ops: set[str] = set()
        """Operators computed in float32 although float64 was asked for: there is no kernel."""

    def run(
        self, step: Step, arrays: Sequence[np.ndarray | None], wide: type[np.floating[Any]]
    ) -> list[np.ndarray]:
        """A node's outputs, its floats computed in float32 or float64 and not rounded.

        arrays: one per input, floats already of type ``wide``, None where one is left out.
        Raises ArtifactError naming the node where ONNX Runtime cannot run it.
        """
        if wide is np.float32:
            return self._run(step, arrays, wide)
        if step.op not in self.float32_ops:
            try:
                return self._run(step, arrays, wide)
            except ArtifactError:
                self.float32_ops.add(step.op)
        narrow = [
            array.astype(np.float32) if array is not None and array.dtype == np.float64 else array
            for array in arrays
        ]
        return [
            array.astype(np.float64) if array.dtype == np.float32 else array
            for array in self._run(step, narrow, np.float32)
        ]

    def _run(
        self, step: Step, arrays: Sequence[np.ndarray | None], wide: type[np.floating[Any]]
    ) -> list[np.ndarray]:
        if any(array is not None and array.dtype == _FP8 for array in arrays):
            return [_fp8_codes(step, arrays, wide)]
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
                f"{np.dtype(wide).name}: {first_line(err)}; verify this file without --nodewise"
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
            if attribute.name in _TYPE_ATTRIBUTES and float_format(attribute.i) is not None:
                attribute.i = helper.np_dtype_to_tensor_dtype(np.dtype(wide))
            if attribute.HasField("t") and float_format(attribute.t.data_type) is not None:
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


def _fp8_codes(
    step: Step, arrays: Sequence[np.ndarray | None], wide: type[np.floating[Any]]
) -> np.ndarray:
    """QuantizeLinear to E4M3 and back, which numpy cannot hand to ONNX Runtime.

    Source: ONNX's operators of these names, saturating.
    """
    values, scale = arrays[0], arrays[1]
    axis = next((a.i for a in step.node.attribute if a.name == "axis"), 1)
    if step.op not in ("QuantizeLinear", "DequantizeLinear") or values is None or scale is None:
        raise ArtifactError(
            f"node {step.name!r} ({step.op}) takes E4M3 codes; node by node knows them between "
            "QuantizeLinear and DequantizeLinear: verify this file without --nodewise"
        )
    if scale.ndim:
        shape = [1] * values.ndim
        shape[axis] = -1
        scale = scale.reshape(shape)
    if step.op == "DequantizeLinear":
        return np.asarray(values.astype(wide) * scale.astype(wide))
    largest = float(ml_dtypes.finfo(_FP8).max)  # type: ignore[no-untyped-call]
    return np.asarray(np.clip(values / scale, -largest, largest).astype(_FP8))
