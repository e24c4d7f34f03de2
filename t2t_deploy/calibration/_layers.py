"""The linear layers of an exported graph, and which of them are quantised."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from t2t_deploy.calibration._forms import IN_OPERATOR, Form, Placement
from t2t_deploy.errors import CalibrationError
from t2t_deploy.types import Precision

_WEIGHT = ".weight"
# the module of `export` that divides windows by their deviation
_NORMALISED = "/normalise/"


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """A product ``source @ weight`` with a constant weight.

    name: module path, such as ``blocks.3.attn.q``, the same in the graph's 16-bit twin. node: the
    product's name in the graph. weight: initializer (inputs, outputs). source: the tensor it reads;
    result: the one it writes. rows: rows of ``source`` for one picture. normalised: ``source`` is
    the output of a LayerNorm, or of windows divided by their deviation. cut_from: the tensor that
    ``source`` is one row of, if any.
    """

    name: str
    node: str
    weight: str
    source: str
    result: str
    inputs: int
    outputs: int
    rows: int
    normalised: bool
    cut_from: str | None = None

    @property
    def ranged(self) -> str:
        """The tensor whose range is that of what the layer reads."""
        return self.cut_from or self.source

    @property
    def macs(self) -> int:
        """Multiply-adds for one picture."""
        return self.rows * self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a layer is quantised, and why; form: how its product is written if it is."""

    layer: LinearLayer
    quantised: bool
    because: str
    form: Form = Form.VECTOR


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to the layers whose whole name matches the pattern."""

    pattern: str
    quantised: bool
    because: str


ONE_ROW = "one row a picture: nothing to gain, and no later layer averages its error out"
WEIGHTS_OF_ONE_ROW = (
    "one row a picture: its weights are most of what it reads, and are stored in 8 bits"
)
NOT_NORMALISED = (
    "windows of the picture before their LayerNorm: one range for all would leave the flat ones "
    "no bits"
)
FP8_WINDOWS = (
    "TensorRT-RTX 1.7.1 dies (division by zero) building FP8 windows of a token block for SM89"
)
# The first rule that matches decides, after ONE_ROW and, for token blocks' windows, NOT_NORMALISED
# and FP8_WINDOWS.
POLICY = (
    Rule(
        r"tokens\.splits\.[01]\.weights\.\w+",
        True,
        "windows times the first weights of a block",
    ),
    Rule(r"tokens\.project\.weights\.\d", True, "windows times the projection"),
    Rule(r"tokens\.blocks\.\d\.proj_weight", False, "a performer's means: 32 rows a picture"),
    Rule(r"tokens\.blocks\.\d\.w_transposed", False, "a performer's exponents"),
    Rule(r"tokens\.blocks\.\d\.(proj|tail\.mlp\.fc[12])", True, "linear layer of a token block"),
    Rule(r"blocks\.\d+\.attn\.(q|k|v|proj)", True, "linear layer of an attention"),
    Rule(r"blocks\.\d+\.mlp\.fc[12]", True, "linear layer of an MLP"),
    Rule(r"blocks\.\d+\.(dense_)?linear", True, "linear layer between dense blocks"),
    Rule(r"blocks\.\d+\.attn\.gate\.(down|up)", False, ONE_ROW),
    Rule(r"head", False, ONE_ROW),
)


def find_layers(model: onnx.ModelProto) -> tuple[LinearLayer, ...]:
    """The linear layers of a graph with inferred shapes, in its order.

    Raises CalibrationError where the shape of what a layer reads is unknown.
    """
    graph = model.graph
    stored = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    infos = (*graph.value_info, *graph.input, *graph.output)
    shapes = {info.name: info.type.tensor_type.shape.dim for info in infos}
    normalised = {node.output[0] for node in graph.node if node.op_type == "LayerNormalization"}
    cuts = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Slice"}
    layers = []
    for node in graph.node:
        if node.op_type != "MatMul" or len(stored.get(node.input[1], ())) != 2:
            continue
        source, weight = node.input
        dims = shapes.get(source)
        if dims is None or not all(dim.HasField("dim_value") for dim in dims[1:]):
            raise CalibrationError(
                f"the shape of {source}, which {node.name} reads, is unknown; expected a graph "
                "with inferred shapes: export the model again"
            )
        rows = math.prod(dim.dim_value for dim in dims[1:-1])
        inputs, outputs = stored[weight]
        layers.append(
            LinearLayer(
                name=weight.removesuffix(_WEIGHT),
                node=node.name,
                weight=weight,
                source=source,
                result=node.output[0],
                inputs=inputs,
                outputs=outputs,
                rows=rows,
                normalised=source in normalised or _NORMALISED in source,
                cut_from=cuts.get(source) if rows == 1 else None,
            )
        )
    return tuple(layers)


def decide(
    layers: Sequence[LinearLayer],
    returned: Mapping[str, str] | None = None,
    *,
    precision: Precision = Precision.INT8,
    placement: Placement = IN_OPERATOR,
) -> tuple[Decision, ...]:
    """What the policy makes of each layer in int8 or fp8, and the form the placement gives it.

    returned: layers that go back to float all the same, with the reason. Raises CalibrationError
    for a layer no rule knows: a new kind of layer is decided on, not defaulted.
    """
    return tuple(_decision(layer, returned or {}, precision, placement) for layer in layers)


def _decision(
    layer: LinearLayer, returned: Mapping[str, str], precision: Precision, placement: Placement
) -> Decision:
    if layer.name in returned:
        return Decision(layer, False, returned[layer.name])
    if layer.rows == 1 and not (placement.queries and layer.cut_from is not None):
        # a projection's sum is fused, and its weights would be written out for that
        if placement.one_row is Form.FLOAT or layer.name.endswith(".attn.proj"):
            return Decision(layer, False, ONE_ROW)
        return Decision(layer, True, WEIGHTS_OF_ONE_ROW, placement.one_row)
    rule = next((rule for rule in POLICY if re.fullmatch(rule.pattern, layer.name)), None)
    if rule is None:
        raise CalibrationError(
            f"no rule says whether layer {layer.name} is quantised; expected one of "
            f"{', '.join(rule.pattern for rule in POLICY)}: quantise a graph that t2t-deploy "
            "exported"
        )
    if layer.name.startswith("tokens.splits.0.") and not layer.normalised:
        return Decision(layer, False, NOT_NORMALISED)
    windows = layer.name.startswith("tokens.splits.")
    if windows and precision is Precision.FP8 and placement.otherwise.reads_codes:
        return Decision(layer, False, FP8_WINDOWS)
    if not rule.quantised:
        return Decision(layer, False, rule.because)
    formed = placement.form_of(layer.name)
    if formed.form is Form.FLOAT:
        return Decision(layer, False, formed.because)
    return Decision(layer, True, rule.because, formed.form)


def readers_of(nodes: Iterable[onnx.NodeProto]) -> dict[str, list[onnx.NodeProto]]:
    """Tensor -> the nodes that read it, in order, once for each of their inputs."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers
