"""Quantize and dequantize operators around the linear layers that the policy names, no others.

    static     x -> QuantizeLinear -> DequantizeLinear -> MatMul <- DequantizeLinear <- codes of W
    dynamic    x -> DynamicQuantizeLinear -> MatMulInteger(codes of W) -> Cast -> Mul(scales)

Biases, sums, norms, softmax, GELU and products of two activations stay in the graph's own type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from t2t_deploy.calibration._forms import Form
from t2t_deploy.calibration._layers import Decision, LinearLayer
from t2t_deploy.calibration._rounding import RoundedWeight, code_limit, storable_scale
from t2t_deploy.errors import CalibrationError
from t2t_deploy.types import Precision

# the first opset whose QuantizeLinear takes float16 and makes float8
TYPED_QDQ_OPSET = 19
_UNSIGNED_ZERO = 128
_PRODUCTS = ("MatMul", "MatMulInteger", "Gemm", "Conv", "ConvInteger", "MultiHeadAttention")


@dataclass(frozen=True, slots=True)
class QuantizedGraph:
    """A graph with 8-bit products.

    quantized_nodes, float_nodes: matrix products by what they multiply; an attention operator
    counts as one.
    """

    model: onnx.ModelProto
    decisions: tuple[Decision, ...]
    quantized_nodes: int
    float_nodes: int


@dataclass(frozen=True, slots=True)
class CodeStorage:
    """How int8 codes are stored: signed around 0, or unsigned around 128; the numbers are the same.

    ONNX Runtime's CPU kernels are fast and exact with both operands unsigned. Signed weights by
    unsigned activations saturate where the processor has no VNNI (10 % error measured on AVX2), and
    two signed operands take several times as long. TensorRT takes signed ones only.
    """

    unsigned: bool

    @property
    def dtype(self) -> np.dtype:
        """Type of the stored codes."""
        return np.dtype(np.uint8 if self.unsigned else np.int8)

    @property
    def zero(self) -> int:
        """The code of zero."""
        return _UNSIGNED_ZERO if self.unsigned else 0

    def store(self, codes: np.ndarray) -> np.ndarray:
        """Signed codes as they are stored."""
        return (codes.astype(np.int16) + self.zero).astype(self.dtype)


SIGNED = CodeStorage(False)
UNSIGNED = CodeStorage(True)


def place_static(
    model: onnx.ModelProto,
    decisions: Sequence[Decision],
    weights: Mapping[str, RoundedWeight],
    ranges: Mapping[str, float],
    precision: Precision,
    storage: CodeStorage = SIGNED,
) -> QuantizedGraph:
    """Quantize and dequantize operators around the layers that are to be quantised.

    model: float32, float16 or bfloat16 graph; it is left as it is. weights: by layer. ranges: the
    largest magnitude of each tensor that layers read, and that layers whose result is quantised
    write, in the float32 graph. Scales have the graph's type. Raises CalibrationError for a range
    that is missing or a graph of an opset that lacks the operators.
    """
    chosen = {found.layer.node: found for found in decisions if found.quantised}
    work = _Static(model, chosen, weights, ranges, precision, storage)
    if work.dtype != np.float32 or precision is Precision.FP8:
        work.require_opset(TYPED_QDQ_OPSET)
    for node in work.nodes():
        found = chosen.get(node.name)
        if found is not None:
            work.place(node, found)
        elif work.cut_later(node):
            work.cuts[node.output[0]] = node
        else:
            work.keep(node)
    return work.finish(decisions)


def place_dynamic(
    model: onnx.ModelProto, decisions: Sequence[Decision], weights: Mapping[str, RoundedWeight]
) -> QuantizedGraph:
    """Layers as integer products whose activations get their range at run time, for all rows alike.

    model: float32 graph for ONNX Runtime on the CPU; it is left as it is.
    """
    chosen = {found.layer.node: found.layer for found in decisions if found.quantised}
    work = _Rewrite(model, chosen.values())
    quantized: dict[str, list[str]] = {}
    for node in work.nodes():
        layer = chosen.get(node.name)
        if layer is None:
            work.keep(node)
            continue
        weight = weights[layer.name]
        if layer.source not in quantized:
            names = [f"{layer.source}/{part}" for part in ("quantized", "scale", "zero")]
            quantized[layer.source] = names
            work.add("DynamicQuantizeLinear", [layer.source], names)
        codes, scale, zero = quantized[layer.source]
        stored = work.constant(f"{layer.name}/codes", UNSIGNED.store(weight.codes))
        scales = work.constant(f"{layer.name}/scale", weight.scale)
        zeros = work.constant(
            f"{layer.name}/zero", np.full(weight.scale.shape, UNSIGNED.zero, np.uint8)
        )
        steps = [f"{layer.name}/{part}" for part in ("sum", "float", "step")]
        work.add("MatMulInteger", [codes, stored, zero, zeros], steps[0])
        work.add("Cast", [steps[0]], steps[1], {"to": TensorProto.FLOAT})
        work.add("Mul", [scale, scales], steps[2])
        work.add("Mul", steps[1:], node.output[0])
    return work.finish(decisions)


class _Rewrite:
    """A graph being written anew, node by node."""

    def __init__(self, model: onnx.ModelProto, layers: Iterable[LinearLayer]) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        graph = self.model.graph
        self._before = list(graph.node)
        del graph.node[:]
        gone = {layer.weight for layer in layers}
        types = {
            helper.tensor_dtype_to_np_dtype(tensor.data_type)
            for tensor in graph.initializer
            if tensor.name in gone
        }
        if len(types) > 1:
            raise CalibrationError(
                f"the layers' weights are {', '.join(map(str, types))}; expected one type: export "
                "the model again"
            )
        self.dtype = next(iter(types), np.dtype(np.float32))
        self._stored = {tensor.name for tensor in graph.initializer}

    def nodes(self) -> Iterable[onnx.NodeProto]:
        return self._before

    def keep(self, node: onnx.NodeProto) -> None:
        self.model.graph.node.append(node)

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: str | Sequence[str],
        attributes: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        node = helper.make_node(op, list(inputs), names, name=name or names[0])
        for key, value in (attributes or {}).items():
            node.attribute.append(helper.make_attribute(key, value))
        self.model.graph.node.append(node)

    def constant(self, name: str, value: np.ndarray) -> str:
        if name in self._stored:
            return name
        self._stored.add(name)
        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        # ascontiguousarray makes a scalar a vector
        tensor.ClearField("dims")
        tensor.dims.extend(value.shape)
        self.model.graph.initializer.append(tensor)
        return name

    def require_opset(self, least: int) -> None:
        opsets = {entry.domain: entry.version for entry in self.model.opset_import}
        if opsets.get("", 0) < least:
            raise CalibrationError(
                f"the graph is of opset {opsets.get('', 0)}; 8-bit operators on 16-bit tensors "
                f"take at least {least}: export it with --opset {least}"
            )

    def finish(self, decisions: Sequence[Decision]) -> QuantizedGraph:
        """Drop what is no longer read, count the products."""
        graph = self.model.graph
        read = {name for node in graph.node for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        ops = [node for node in graph.node if node.op_type in _PRODUCTS]
        made = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        quantized = sum(
            node.op_type == "MatMulInteger" or all(name in made for name in node.input[:2])
            for node in ops
        )
        return QuantizedGraph(self.model, tuple(decisions), quantized, len(ops) - quantized)


class _Static(_Rewrite):
    """A graph in which layers read codes, each written as its form says (module `_forms`)."""

    def __init__(
        self,
        model: onnx.ModelProto,
        chosen: Mapping[str, Decision],
        weights: Mapping[str, RoundedWeight],
        ranges: Mapping[str, float],
        precision: Precision,
        storage: CodeStorage,
    ) -> None:
        super().__init__(model, [found.layer for found in chosen.values()])
        self.weights, self.ranges = weights, ranges
        self.precision, self.storage = precision, storage
        self.largest = code_limit(precision)
        self.zero = _zero(precision, storage)
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes():
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.chosen = chosen
        self.codes: dict[str, tuple[str, str, str]] = {}
        self.cuts: dict[str, onnx.NodeProto] = {}

    def place(self, node: onnx.NodeProto, found: Decision) -> None:
        """A quantised layer."""
        layer, form = found.layer, found.form
        weight = self.weights[layer.name]
        cut = self.cuts.get(node.input[0])
        if cut is not None:
            node.input[0], node.output[0] = cut.input[0], f"{node.output[0]}/rows"
        read = node.input[0]
        if form.reads_codes:
            read = self._dequantized(read, self._range(layer), layer.name)
        constant = self._weight(layer, weight)
        node.input[0], node.input[1] = read, constant
        written = node.output[0]
        if form is Form.RESULT:
            if layer.result not in self.ranges:
                raise CalibrationError(
                    f"no range is known of {layer.result}, which {layer.name} writes; "
                    "calibrate this graph again"
                )
            self.keep(node)
            self._requantize(written, self.ranges[layer.result])
        elif weight.parts is not None and weight.parts.ratio is not None:
            node.output[0] = f"{written}/sum"
            self.keep(node)
            ratio = self.constant(f"{layer.name}/ratio", weight.parts.ratio)
            self.add("Mul", [f"{written}/sum", ratio], written, name=f"{layer.name}/by_channel")
        else:
            self.keep(node)
        if cut is not None:
            self._cut(cut, written)

    def _cut(self, cut: onnx.NodeProto, rows: str) -> None:
        """Cut the row out of a layer's result, which keeps its name."""
        self.keep(cut)
        made = self.model.graph.node[-1]
        made.input[0], made.output[0] = rows, rows.removesuffix("/rows")

    def cut_later(self, node: onnx.NodeProto) -> bool:
        """Whether a row is cut out for quantised layers alone, which can give it for all rows.

        The norm before it then writes codes and nothing else.
        """
        if node.op_type != "Slice":
            return False
        readers = [self.chosen.get(reader.name) for reader in self.readers.get(node.output[0], ())]
        return bool(readers) and all(
            found is not None and found.layer.cut_from is not None and found.form.reads_codes
            for found in readers
        )

    def _range(self, layer: LinearLayer) -> float:
        if layer.ranged not in self.ranges:
            raise CalibrationError(
                f"no range is known of {layer.ranged}, which {layer.name} reads; calibrate this "
                "graph again"
            )
        return self.ranges[layer.ranged]

    def _codes_of(self, tensor: str, largest: float) -> tuple[str, str, str]:
        """A tensor's codes, their step and their zero; it is quantised once for all its readers."""
        if tensor not in self.codes:
            step = storable_scale(largest / self.largest, self.dtype)
            scale = self.constant(f"{tensor}/scale", step)
            point = self.constant(f"{tensor}/zero", self.zero)
            self.codes[tensor] = (f"{tensor}/quantized", scale, point)
            self.add("QuantizeLinear", [tensor, scale, point], f"{tensor}/quantized")
        return self.codes[tensor]

    def _dequantized(self, tensor: str, largest: float, reader: str) -> str:
        """The numbers that a tensor's codes stand for."""
        self.add("DequantizeLinear", list(self._codes_of(tensor, largest)), f"{reader}/input")
        return f"{reader}/input"

    def _requantize(self, tensor: str, largest: float) -> None:
        """Put codes between the node that was kept last and those that read its result."""
        made = self.model.graph.node[-1]
        made.output[0] = f"{tensor}/16bit"
        scale = self.constant(f"{tensor}/scale", storable_scale(largest / self.largest, self.dtype))
        point = self.constant(f"{tensor}/zero", self.zero)
        self.add("QuantizeLinear", [f"{tensor}/16bit", scale, point], f"{tensor}/quantized")
        self.add("DequantizeLinear", [f"{tensor}/quantized", scale, point], tensor)

    def _weight(self, layer: LinearLayer, weight: RoundedWeight) -> str:
        """The weight's codes and steps as a dequantised constant; ratios are left to do."""
        scale = weight.scale
        if weight.parts is not None:
            scale = weight.parts.base
        codes = weight.codes
        if self.precision is not Precision.FP8:
            codes = self.storage.store(codes)
        constants = [
            self.constant(f"{layer.name}/codes", codes),
            self.constant(f"{layer.name}/scale", scale.astype(self.dtype)),
            self.constant(f"{layer.name}/zero", np.broadcast_to(self.zero, scale.shape)),
        ]
        # one scale for each output is along the weight's second axis; one in all has none
        axis = {"axis": 1} if scale.ndim else {}
        self.add("DequantizeLinear", constants, f"{layer.name}/weight", axis)
        return f"{layer.name}/weight"


def _zero(precision: Precision, storage: CodeStorage) -> np.ndarray:
    if precision is Precision.FP8:
        return np.zeros((), ml_dtypes.float8_e4m3fn)
    return np.array(storage.zero, storage.dtype)
