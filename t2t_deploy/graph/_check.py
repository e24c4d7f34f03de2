"""The contract of exported graphs: static, self-contained, typed throughout."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from t2t_deploy.errors import ExportError, counted
from t2t_deploy.types import TensorSpec

# Operators that need values at run time to know a shape.
FORBIDDEN_OPS = frozenset(
    {"Range", "Loop", "If", "Scan", "NonZero", "SequenceAt", "SplitToSequence", "ConstantOfShape"}
)
CONTRIB_DOMAIN = "com.microsoft"  # of ONNX Runtime's own operators
_STANDARD_DOMAINS = frozenset({"", "ai.onnx"})


@dataclass(frozen=True, slots=True)
class GraphSummary:
    """Content of a graph. ops: operator -> count; weight_bytes: by dtype."""

    nodes: int
    ops: Mapping[str, int]
    weight_bytes: Mapping[str, int]
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def check_graph(
    model: onnx.ModelProto, *, batch: int | None, contrib: bool = False
) -> onnx.ModelProto:
    """Check the export contract; returns the model with inferred shapes.

    batch: the fixed batch size, None for dynamic. contrib: allows ONNX Runtime's own
    operators, with the types that the export gave them. Raises ExportError naming the breach.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise ExportError(f"the exported graph is invalid: {str(err).strip()}") from err
    graph = inferred.graph
    ops = Counter(node.op_type for node in graph.node)
    banned = sorted(FORBIDDEN_OPS & ops.keys())
    if banned:
        raise ExportError(f"the exported graph has {', '.join(banned)}; expected static shapes")
    # The class token is folded into the position table, so not even a dynamic batch needs Shape.
    if ops["Shape"]:
        raise ExportError(f"the exported graph has {ops['Shape']} Shape operators; expected none")
    allowed = _STANDARD_DOMAINS | {CONTRIB_DOMAIN} if contrib else _STANDARD_DOMAINS
    foreign = sorted({node.domain for node in graph.node} - allowed)
    if foreign or inferred.functions:
        raise ExportError(
            f"the exported graph uses domains {foreign} and "
            f"{counted(len(inferred.functions), 'function')}; expected those of {sorted(allowed)} "
            "only"
        )
    nested = [n.name for n in graph.node if any(a.HasField("g") or a.graphs for a in n.attribute)]
    if nested:
        raise ExportError(f"the exported graph has subgraphs in {', '.join(nested[:3])}")
    _check_dims(graph, batch)
    return inferred


def _check_dims(graph: onnx.GraphProto, batch: int | None) -> None:
    typed = {info.name: info for info in (*graph.value_info, *graph.input, *graph.output)}
    for node in graph.node:
        for name in node.output:
            if name and name not in typed:
                raise ExportError(f"tensor {name} of {node.op_type} has no inferred type")
    for name, info in typed.items():
        free = [axis for axis, dim in enumerate(_dims(info)) if dim is None]
        if free and (batch is not None or free != [0]):
            raise ExportError(
                f"tensor {name} has free dimensions {free}; expected "
                f"{'none' if batch is not None else 'at most the batch'}"
            )


def summarise_graph(model: onnx.ModelProto) -> GraphSummary:
    """Operators, weights by dtype, inputs and outputs of any ONNX model."""
    graph = model.graph
    weight_bytes: Counter[str] = Counter()
    for tensor in graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        weight_bytes[str(dtype)] += math.prod(tensor.dims) * dtype.itemsize
    stored = {tensor.name for tensor in graph.initializer}
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    return GraphSummary(
        nodes=len(graph.node),
        ops=dict(Counter(node.op_type for node in graph.node).most_common()),
        weight_bytes=dict(weight_bytes),
        opset=opsets.get("", opsets.get("ai.onnx", 0)),
        inputs=tuple(tensor_spec(info) for info in graph.input if info.name not in stored),
        outputs=tuple(tensor_spec(info) for info in graph.output),
    )


def tensor_spec(info: onnx.ValueInfoProto) -> TensorSpec:
    """Name, dtype and shape of a tensor by its graph."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    return TensorSpec(info.name, str(dtype), tuple(_dims(info)))


def _dims(info: onnx.ValueInfoProto) -> list[int | None]:
    dims = info.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
