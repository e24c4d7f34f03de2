"""ONNX Runtime on one node at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from t2t_deploy._optional import require
from t2t_deploy._untrusted import first_line
from t2t_deploy.errors import ArtifactError
from t2t_deploy.verify._float_format import float_format
from t2t_deploy.verify._nodewise_graph import Step, TypedGraph

if TYPE_CHECKING:
    import onnx

_FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
# Attributes that hold an element type.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype"})


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


def _as(array: np.ndarray | None, dtype: type[np.floating[Any]]) -> np.ndarray | None:
    return array.astype(dtype) if array is not None and array.dtype == np.float64 else array
