"""The ONNX graph as TensorRT's network: parsing, batch, multiply-adds, foreign files."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from t2t_deploy._progress import Progress
from t2t_deploy.engine._module import TensorRT
from t2t_deploy.errors import ArtifactError, EngineError, first_few
from t2t_deploy.graph import check_onnx_file
from t2t_deploy.types import ShapeProfile, TensorSpec

if TYPE_CHECKING:
    import onnx
    import tensorrt

DEFAULT_PROFILE = ShapeProfile(1, 1, 32)
# TensorRT's names of types -> numpy's
NUMPY_NAMES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "UINT8": "uint8",
    "INT32": "int32", "INT64": "int64", "BOOL": "bool",
}  # fmt: skip
_PLUGINS = "trt.plugins"
_CONTRIB = frozenset(("com.microsoft", op) for op in ("QuantizeLinear", "DequantizeLinear"))


def parse_network(
    trt: TensorRT, builder: tensorrt.Builder, logger: tensorrt.ILogger, onnx_path: Path, name: str
) -> tensorrt.INetworkDefinition:
    """Parse an ONNX file into a strongly typed network.

    Raises ArtifactError for a missing file, EngineError naming the nodes the parser refused.
    """
    if not onnx_path.is_file():
        raise ArtifactError(f"no ONNX file at {onnx_path}; export one first or correct the path")
    # the parser ignores domains, and means the same operators by these
    check_onnx_file(
        onnx_path, domains=lambda domain, op: domain == _PLUGINS or (domain, op) in _CONTRIB
    )
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(flag))
    # the engine stores it; the builder numbers unnamed networks
    network.name = name
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)) or network.num_outputs == 0:
        raise EngineError(_parser_message(parser, onnx_path))
    return network


def _parser_message(parser: tensorrt.OnnxParser, onnx_path: Path) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    problems = [
        f"node {error.node_name() or error.node()!r} ({error.node_operator()}): "
        f"{' '.join(error.desc().split())}"
        for error in errors
        if error.node() >= 0
    ]
    if not problems:
        return f"{onnx_path} is not an ONNX model that the parser reads; export it again"
    return (
        f"the parser refused {onnx_path}: {first_few(problems, '; ')}. Export it for the target "
        "'tensorrt', or replace these operators"
    )


def tensor_specs(network: tensorrt.INetworkDefinition, *, outputs: bool) -> tuple[TensorSpec, ...]:
    """The network's inputs or outputs; a dimension free at run time is None."""
    count, get = network.num_inputs, network.get_input
    if outputs:
        count, get = network.num_outputs, network.get_output
    return tuple(
        TensorSpec(tensor.name, numpy_name(tensor.dtype), shape_of(tensor.shape))
        for tensor in map(get, range(count))
    )


def sizes(dims: tensorrt.Dims) -> tuple[int, ...]:
    """TensorRT's dimensions as a tuple; -1 is free."""
    return tuple(dims[index] for index in range(len(dims)))


def shape_of(dims: tensorrt.Dims) -> tuple[int | None, ...]:
    """TensorRT's dimensions in the form of `TensorSpec`."""
    return tuple(None if dim < 0 else int(dim) for dim in sizes(dims))


def one_batch(inputs: Sequence[TensorSpec]) -> int | None:
    """The batch of all inputs; None is free.

    Raises EngineError where a dimension other than the batch is free, or inputs disagree about it.
    """
    for spec in inputs:
        if None in spec.shape[1:]:
            raise EngineError(
                f"input {spec} leaves more than the batch free; expected the batch alone: export "
                "with fixed sizes after the first dimension"
            )
    batches = {spec.shape[0] if spec.shape else None for spec in inputs}
    if len(batches) > 1:
        raise different_batches(inputs)
    return batches.pop()


def different_batches(inputs: Sequence[TensorSpec]) -> EngineError:
    """The error where inputs disagree about the batch."""
    shown = "; ".join(map(str, inputs))
    return EngineError(f"inputs {shown} disagree about the batch: export them with one batch")


def resolve_profiles(
    inputs: Sequence[TensorSpec], profiles: Sequence[ShapeProfile]
) -> tuple[ShapeProfile, ...]:
    """The batch profiles to build with.

    Raises EngineError as `one_batch`, or where a profile varies a fixed batch.
    """
    fixed = one_batch(inputs)
    if fixed is None:
        return tuple(profiles) or (DEFAULT_PROFILE,)
    only = ShapeProfile(fixed, fixed, fixed)
    other = [str(profile) for profile in profiles if profile != only]
    if other:
        raise EngineError(
            f"the graph takes batches of exactly {fixed}, and profile {', '.join(other)} asks for "
            f"others: export with batch dynamic, or build with {only}"
        )
    return (only,)


def add_profiles(
    trt: TensorRT,
    builder: tensorrt.Builder,
    config: tensorrt.IBuilderConfig,
    inputs: Sequence[TensorSpec],
    profiles: Sequence[ShapeProfile],
) -> None:
    """Give the configuration one optimisation profile per batch range; none for a fixed batch."""
    free = [spec for spec in inputs if spec.shape[:1] == (None,)]
    if not free:
        return
    for batches in profiles:
        profile = builder.create_optimization_profile()
        for spec in free:
            rest = [dim for dim in spec.shape[1:] if dim is not None]
            low, opt, high = (
                trt.Dims([batch, *rest]) for batch in (batches.min, batches.opt, batches.max)
            )
            profile.set_shape(spec.name, low, opt, high)
        config.add_optimization_profile(profile)


def layer_macs(trt: TensorRT, network: tensorrt.INetworkDefinition, batch: int) -> dict[str, int]:
    """Multiply-adds of every matrix product and convolution at ``batch``, by ONNX node name.

    The batch is pinned for the count and freed again.
    """
    freed = []
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = sizes(tensor.shape)
        if shape and shape[0] == -1:
            freed.append((tensor, shape))
            tensor.shape = trt.Dims([batch, *shape[1:]])
    try:
        macs_of: Counter[str] = Counter()
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            macs = _macs(trt, layer)
            if macs:
                macs_of[onnx_name(layer)] += macs
        return dict(macs_of)
    finally:
        for tensor, shape in freed:
            tensor.shape = trt.Dims(list(shape))


def _macs(trt: TensorRT, layer: tensorrt.ILayer) -> int:
    out = math.prod(sizes(layer.get_output(0).shape))
    if layer.type == trt.LayerType.MATRIX_MULTIPLY:
        layer.__class__ = trt.IMatrixMultiplyLayer
        product = cast("tensorrt.IMatrixMultiplyLayer", layer)
        # the summed axis is the last of the first operand, or the one before it if transposed
        axis = -2 if product.op0 == trt.MatrixOperation.TRANSPOSE else -1
        return int(out * layer.get_input(0).shape[axis])
    if layer.type == trt.LayerType.CONVOLUTION:
        layer.__class__ = trt.IConvolutionLayer
        convolution = cast("tensorrt.IConvolutionLayer", layer)
        channels = layer.get_input(0).shape[1] // convolution.num_groups
        return int(out * channels * math.prod(sizes(convolution.kernel_size_nd)))
    return 0


def product_operands(
    trt: TensorRT, network: tensorrt.INetworkDefinition
) -> list[tuple[str, frozenset[tensorrt.DataType]]]:
    """ONNX name of every matrix product and the types of its operand.

    Behind a dequantisation the operand has two: its own and the stored one.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    producers = {layer.get_output(0).name: layer for layer in layers}
    operands = []
    for layer in layers:
        if layer.type == trt.LayerType.MATRIX_MULTIPLY:
            operand = layer.get_input(0)
            types = {operand.dtype}
            producer = producers.get(operand.name)
            if producer is not None and producer.type == trt.LayerType.DEQUANTIZE:
                types.add(producer.get_input(0).dtype)
            operands.append((onnx_name(layer), frozenset(types)))
    return operands


def onnx_name(layer: tensorrt.ILayer) -> str:
    """The ONNX node a layer was parsed from."""
    match = re.fullmatch(r"\[ONNX Layer: (.*)\]", layer.metadata)
    return match[1] if match else str(layer.name)


def numpy_name(dtype: tensorrt.DataType) -> str:
    """Numpy's name of TensorRT's type, if it has one."""
    name = str(dtype.name)
    return NUMPY_NAMES.get(name, name.lower())


def check_foreign(model: onnx.ModelProto, name: str, progress: Progress) -> None:
    """Refuse a graph that an engine would compute wrongly; note inputs that change their type.

    Codes of QuantizeLinear without a zero, or with an unsigned one, are 0 to 255 by ONNX;
    TensorRT-RTX 1.7.1 takes them for signed ones, so that 200 becomes 127. A float64 input becomes
    float32. Raises EngineError naming the nodes.
    """
    from onnx import TensorProto

    graph = model.graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            types[node.output[0]] = node.attribute[0].t.data_type
    unsigned = [
        node.name or node.output[0]
        for node in graph.node
        if node.op_type == "QuantizeLinear" and _is_unsigned(node, types)
    ]
    if unsigned:
        raise EngineError(
            f"{name} quantises to unsigned codes, 0 to 255, in {first_few(unsigned)}; "
            "TensorRT would read them as signed and clip at 127: quantise it with int8 zero points"
        )
    stored = set(types)
    for info in graph.input:
        if info.name not in stored and info.type.tensor_type.elem_type == TensorProto.DOUBLE:
            progress.note(f"input {info.name} of {name} is float64; the engine takes it as float32")


def _is_unsigned(node: onnx.NodeProto, types: dict[str, int]) -> bool:
    from onnx import TensorProto

    declared = [a.i for a in node.attribute if a.name == "output_dtype" and a.i]
    if declared:
        return bool(declared[0] == TensorProto.UINT8)
    zero = node.input[2] if len(node.input) > 2 else ""
    # the type of a computed zero is unknown before inference; engines take constants
    return not zero or bool(types.get(zero) == TensorProto.UINT8)
