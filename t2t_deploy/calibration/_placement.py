"""Quantize and dequantize operators around the linear layers that the policy names, no others."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from t2t_deploy.calibration._forms import Form
from t2t_deploy.calibration._layers import Decision, LinearLayer, readers_of
from t2t_deploy.calibration._weights import RoundedWeight, code_limit, storable_scale
from t2t_deploy.errors import CalibrationError
from t2t_deploy.types import Precision

# the first opset whose QuantizeLinear takes float16 and makes float8
TYPED_QDQ_OPSET = 19
_ATTENTIONS = ("Attention", "MultiHeadAttention")
_PRODUCTS = ("MatMul", "MatMulInteger", "Gemm", "Conv", "ConvInteger", *_ATTENTIONS)


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
    """How int8 codes are stored: signed around 0, or unsigned around 128, the same numbers."""

    dtype: np.dtype
    zero: int

    def store(self, codes: np.ndarray) -> np.ndarray:
        """Signed codes as they are stored."""
        return (codes.astype(np.int16) + self.zero).astype(self.dtype)


SIGNED = CodeStorage(np.dtype(np.int8), 0)
UNSIGNED = CodeStorage(np.dtype(np.uint8), 128)


class Codes(str, Enum):
    """How a graph stores the int8 codes of activations and of weights; the numbers are the same."""

    SIGNED = "signed"
    """Both signed: TensorRT takes no others."""
    EXACT = "exact"
    """Both unsigned: ONNX Runtime multiplies them exactly on every x86 processor, without VNNI."""
    VNNI = "vnni"
    """Unsigned by signed, what VNNI multiplies. ONNX Runtime's products of them saturate on a
    processor without VNNI, unless the session makes EXACT of it (session.x64quantprecision)."""

    @property
    def activations(self) -> CodeStorage:
        """Of what layers read."""
        return SIGNED if self is Codes.SIGNED else UNSIGNED

    @property
    def weights(self) -> CodeStorage:
        """Of the layers' weights."""
        return UNSIGNED if self is Codes.EXACT else SIGNED


def place_static(
    model: onnx.ModelProto,
    decisions: Sequence[Decision],
    weights: Mapping[str, RoundedWeight],
    ranges: Mapping[str, float],
    precision: Precision,
    codes: Codes = Codes.SIGNED,
    *,
    merge: bool = False,
) -> QuantizedGraph:
    """Quantize and dequantize operators around the layers that are to be quantised.

        x -> QuantizeLinear -> DequantizeLinear -> MatMul <- DequantizeLinear <- codes of W

    Biases, sums, norms, softmax, GELU and products of activations stay in the graph's own type.

    model: float32, float16 or bfloat16 graph; it is left as it is. weights: by layer. ranges: the
    largest magnitude of each tensor that layers read, and that layers whose result is quantised
    write, in the float32 graph. Scales have the graph's type. merge: as `merge_readers`. Raises
    CalibrationError for a range that is missing or a graph of an opset that lacks the operators.
    """
    work = _Static(model, decisions, weights, ranges, precision, codes)
    for node in work.before:
        found = work.chosen.get(node.name)
        if found is not None:
            work.place(node, found)
        elif node.output[0] not in work.cuts:
            work.keep(node)
    if merge:
        merge_readers(work.model)
    return work.finish()


def place_dynamic(
    model: onnx.ModelProto,
    decisions: Sequence[Decision],
    weights: Mapping[str, RoundedWeight],
    codes: Codes = Codes.EXACT,
) -> QuantizedGraph:
    """Layers as integer products whose activations get their range at run time, for all rows alike.

        x -> DynamicQuantizeLinear -> MatMulInteger(codes of W) -> Cast -> Mul(scales)

    model: float32 graph for ONNX Runtime on the CPU; it is left as it is. codes: of the weights;
    the operator's own are unsigned.
    """
    work, storage = _Rewrite(model, decisions), codes.weights
    quantized: dict[str, list[str]] = {}
    for node in work.before:
        found = work.chosen.get(node.name)
        if found is None:
            work.keep(node)
            continue
        layer, weight = found.layer, weights[found.layer.name]
        if layer.source not in quantized:
            names = [f"{layer.source}/{part}" for part in ("quantized", "scale", "zero")]
            quantized[layer.source] = names
            work.add("DynamicQuantizeLinear", [layer.source], *names)
        read, scale, zero = quantized[layer.source]
        stored = work.constant(f"{layer.name}/codes", storage.store(weight.codes))
        scales = work.constant(f"{layer.name}/scale", weight.scale)
        zeros = work.constant(
            f"{layer.name}/zero", np.full(weight.scale.shape, storage.zero, storage.dtype)
        )
        steps = [f"{layer.name}/{part}" for part in ("sum", "float", "step")]
        work.add("MatMulInteger", [read, stored, zero, zeros], steps[0])
        work.add("Cast", steps[:1], steps[1], to=TensorProto.FLOAT)
        work.add("Mul", [scale, scales], steps[2])
        work.add("Mul", steps[1:], node.output[0])
    return work.finish()


class _Rewrite:
    """A graph being written anew, node by node. before: its nodes; chosen: decisions by node."""

    def __init__(self, model: onnx.ModelProto, decisions: Sequence[Decision]) -> None:
        self.model = copy.deepcopy(model)
        graph = self.model.graph
        self.before = list(graph.node)
        del graph.node[:]
        self.decisions = tuple(decisions)
        self.chosen = {found.layer.node: found for found in decisions if found.quantised}
        self._stored = {tensor.name for tensor in graph.initializer}
        gone = {found.layer.weight for found in self.chosen.values()}
        stored = (tensor for tensor in graph.initializer if tensor.name in gone)
        types = {helper.tensor_dtype_to_np_dtype(tensor.data_type) for tensor in stored}
        if len(types) > 1:
            raise CalibrationError(
                f"the layers' weights are {', '.join(map(str, types))}; expected one type: export "
                "the model again"
            )
        self.dtype = next(iter(types), np.dtype(np.float32))

    def keep(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Append a node; returns the one of the new graph."""
        kept: onnx.NodeProto = self.model.graph.node.add()
        kept.CopyFrom(node)
        return kept

    def add(
        self, op: str, inputs: Sequence[str], *outputs: str, name: str = "", **attributes: Any
    ) -> None:
        made = helper.make_node(op, inputs, outputs, name=name or outputs[0], **attributes)
        self.model.graph.node.append(made)

    def constant(self, name: str, value: np.ndarray) -> str:
        if name in self._stored:
            return name
        self._stored.add(name)
        self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def finish(self) -> QuantizedGraph:
        """Drop what is no longer read, count the products."""
        graph = self.model.graph
        read = {name for node in graph.node for name in node.input}
        for index in reversed(range(len(graph.initializer))):
            if graph.initializer[index].name not in read:
                del graph.initializer[index]
        ops = [node for node in graph.node if node.op_type in _PRODUCTS]
        made = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        quantized = sum(
            node.op_type == "MatMulInteger" or all(name in made for name in node.input[:2])
            for node in ops
        )
        return QuantizedGraph(self.model, self.decisions, quantized, len(ops) - quantized)


class _Static(_Rewrite):
    """A graph in which layers read codes, each written as its form says.

    cuts: nodes that cut a row out for quantised layers alone, by what they give. Such a layer is
    given all rows, and its result is cut; the norm before it then writes codes and nothing else.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        decisions: Sequence[Decision],
        weights: Mapping[str, RoundedWeight],
        ranges: Mapping[str, float],
        precision: Precision,
        codes: Codes,
    ) -> None:
        super().__init__(model, decisions)
        self.weights, self.ranges = weights, ranges
        self.precision, self.storage = precision, codes
        fp8 = precision is Precision.FP8
        opset = next((entry.version for entry in model.opset_import if not entry.domain), 0)
        if opset < TYPED_QDQ_OPSET and (fp8 or self.dtype != np.float32):
            raise CalibrationError(
                f"the graph is of opset {opset}; 8-bit operators on 16-bit tensors take at least "
                f"{TYPED_QDQ_OPSET}: export it with --opset {TYPED_QDQ_OPSET}"
            )
        readers = readers_of(self.before)
        self.cuts = {
            node.output[0]: node
            for node in self.before
            if node.op_type == "Slice" and self._reads_rows(readers.get(node.output[0], []))
        }
        self.codes: dict[str, list[str]] = {}

    def place(self, node: onnx.NodeProto, found: Decision) -> None:
        """A quantised layer."""
        layer, weight = found.layer, self.weights[found.layer.name]
        cut = self.cuts.get(node.input[0])
        if cut is not None:
            node.input[0], node.output[0] = cut.input[0], f"{node.output[0]}/rows"
        read, written = node.input[0], node.output[0]
        if found.form.reads_codes:
            # a tensor is quantised once for all that read it
            largest = self._largest(layer.ranged, f"{layer.name} reads")
            if read not in self.codes:
                self.codes[read] = self._quantized(read, read, largest)
            node.input[0] = f"{layer.name}/input"
            self.add("DequantizeLinear", self.codes[read], node.input[0])
        node.input[1] = self._weight(layer, weight)
        ratio = None if weight.parts is None else weight.parts.ratio
        if found.form is Form.RESULT:
            largest = self._largest(layer.result, f"{layer.name} writes")
            node.output[0] = f"{written}/16bit"
            self.keep(node)
            codes = self._quantized(node.output[0], written, largest)
            self.add("DequantizeLinear", codes, written)
        elif ratio is not None:
            node.output[0] = f"{written}/sum"
            self.keep(node)
            ratios = self.constant(f"{layer.name}/ratio", ratio)
            self.add("Mul", [node.output[0], ratios], written, name=f"{layer.name}/by_channel")
        else:
            self.keep(node)
        if cut is not None:  # its row keeps the name that the layer's result had
            row = self.keep(cut)
            row.input[0], row.output[0] = written, written.removesuffix("/rows")

    def _reads_rows(self, readers: Sequence[onnx.NodeProto]) -> bool:
        """Whether all readers of a row are quantised layers that can be given every row."""
        found = [self.chosen.get(reader.name) for reader in readers]
        return bool(found) and all(
            one is not None and one.layer.cut_from is not None and one.form.reads_codes
            for one in found
        )

    def _largest(self, tensor: str, use: str) -> float:
        if tensor not in self.ranges:
            raise CalibrationError(
                f"no range is known of {tensor}, which {use}; calibrate this graph again"
            )
        return self.ranges[tensor]

    def _quantized(self, tensor: str, name: str, largest: float) -> list[str]:
        """Names of a tensor's codes, their step and their zero. name: what they are called by."""
        step = storable_scale(largest / code_limit(self.precision), self.dtype)
        scale = self.constant(f"{name}/scale", step)
        point = self.constant(f"{name}/zero", self._zero(self.storage.activations))
        self.add("QuantizeLinear", [tensor, scale, point], f"{name}/quantized")
        return [f"{name}/quantized", scale, point]

    def _zero(self, storage: CodeStorage) -> np.ndarray:
        fp8 = self.precision is Precision.FP8
        return np.array(storage.zero, ml_dtypes.float8_e4m3fn if fp8 else storage.dtype)

    def _weight(self, layer: LinearLayer, weight: RoundedWeight) -> str:
        """The weight's codes and steps as a dequantised constant; ratios are left to do."""
        scale = weight.scale if weight.parts is None else weight.parts.base
        fp8 = self.precision is Precision.FP8
        codes = weight.codes if fp8 else self.storage.weights.store(weight.codes)
        zero = self._zero(self.storage.weights)
        constants = [
            self.constant(f"{layer.name}/codes", codes),
            self.constant(f"{layer.name}/scale", scale.astype(self.dtype)),
            self.constant(f"{layer.name}/zero", np.broadcast_to(zero, scale.shape)),
        ]
        # one scale for each output is along the weight's second axis; one in all has none
        axis = 1 if scale.ndim else None
        self.add("DequantizeLinear", constants, f"{layer.name}/weight", axis=axis)
        return f"{layer.name}/weight"


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
        made = [one for one in operands if one is not None and one.op_type == "DequantizeLinear"]
        if node.op_type != "MatMul" or len(made) < 2:
            continue
        codes = producers.get(made[0].input[0])
        if codes is not None and codes.op_type == "QuantizeLinear":
            groups.setdefault(codes.output[0], []).append(node)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for products in groups.values():
        weights = [producers[node.input[1]] for node in products]
        if len(products) > 1 and all(stored[one.input[1]].dims for one in weights):
            _merge(graph, products, weights, producers, stored)


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
