"""What runtimes that are not ours make of a graph: what they refuse, and compute wrongly.

Found by `make test-runtimes`, which compares this table with what it finds; docs/runtimes.md has
the figures and the causes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class _Traits:
    """What of a graph decides, in one pass over it."""

    ops: frozenset[str]
    contrib: frozenset[str]
    dtypes: frozenset[str]
    """of weights, and of what is cast"""
    opset: int
    pixels: bool
    joined_gelu: bool
    """a GELU written (x (erf + 1)) / 2, which multiplies before it halves"""

    @property
    def quantized(self) -> bool:
        """Whether numbers are stored as codes with scales."""
        return "DequantizeLinear" in self.ops


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that a runtime gets wrong or refuses. applies: to a graph of these traits."""

    applies: Callable[[_Traits], object]
    reason: str
    way_out: str
    silent: bool = False
    """whether it computes other numbers and says nothing"""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A runtime: the releases that were tried, and all that is known against it."""

    tried: str
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Conformance:
    """What is known of a graph in a runtime; it is right there unless there are ``faults``."""

    runtime: str
    tried: str
    faults: tuple[Fault, ...]

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "name": self.runtime,
            "tried": self.tried,
            "faults": [
                {"reason": one.reason, "way_out": one.way_out, "silent": one.silent}
                for one in self.faults
            ],
        }


_DYNAMIC = frozenset({"DynamicQuantizeLinear", "MatMulInteger"})
_FLOAT32 = "export in fp32"


def _bf16(reason: str) -> Fault:
    return Fault(lambda t: "bfloat16" in t.dtypes, reason, "export in fp32 or fp16")


def _lacks(ops: frozenset[str], way_out: str) -> Fault:
    words = " and ".join(sorted(ops))
    return Fault(lambda t: ops & t.ops, f"it has no {words}", way_out)


_NO_OWN_OPERATORS = Fault(
    lambda t: t.contrib,
    "it has none of ONNX Runtime's own operators",
    "export for target portable",
)
_NO_BF16 = _bf16("it has no bf16 product on a CPU")


def _bf16_by_itself(way_out: str) -> Fault:
    return Fault(
        lambda t: (
            {"float32", "float16"} & t.dtypes and "bfloat16" not in t.dtypes and not t.quantized
        ),
        "it computes in bf16 by itself on a processor that has bf16: 0.5 to 1.1 % off",
        way_out,
        silent=True,
    )


RUNTIMES: Mapping[str, Elsewhere] = {
    "iree": Elsewhere("3.13.0", (_NO_OWN_OPERATORS,)),
    "litert": Elsewhere(
        "2.1.0 with onnx2tf 1.29.24",
        (
            Fault(
                lambda t: {"Erf", "Gelu"} & t.ops,
                "onnx2tf makes a TensorFlow operator of Erf, which LiteRT alone has not; with "
                "-rtpo Erf it loads, and the outputs are others",
                "take the module that is traced through litert-torch, which is right in fp32",
                silent=True,
            ),
            _NO_OWN_OPERATORS,
        ),
    ),
    "mnn": Elsewhere(
        "3.6.1",
        (
            Fault(
                lambda t: (t.joined_gelu or "Gelu" in t.ops) and not t.quantized,
                "it takes the GELU for one of its own, which is another function: 2e-4 off",
                "export again: files made since 2026-12-01 write it so that it is left alone",
                silent=True,
            ),
            _bf16("it gives no output of a bf16 graph"),
            _NO_OWN_OPERATORS,
        ),
    ),
    "ncnn": Elsewhere(
        "1.0.20261020 with pnnx 20261020",
        (
            Fault(
                lambda t: any(op.startswith("Reduce") for op in t.ops),
                "pnnx loses the axis of its sums, means and maxima",
                "export with --target ncnn",
                silent=True,
            ),
            _lacks(frozenset({"TopK"}), "export with another --tail"),
            Fault(
                lambda t: t.quantized or _DYNAMIC & t.ops,
                "pnnx leaves out quantisation",
                "take the fp32 file, and ncnn's own quantisation",
            ),
            Fault(
                lambda t: {"bfloat16", "float16"} & t.dtypes,
                "it reads float32 alone",
                f"{_FLOAT32}: pnnx halves the weights by itself, with fp16=1",
            ),
            Fault(lambda t: t.pixels, "it refuses a uint8 input", "export without the pixels"),
            _NO_OWN_OPERATORS,
        ),
    ),
    "nxrt": Elsewhere("0.1.0.dev6", (_lacks(_DYNAMIC, "quantise with static ranges"),)),
    "onnx-reference": Elsewhere(
        "1.23.2",
        (
            Fault(
                lambda t: t.quantized and t.opset < 19,
                "it has no DequantizeLinear of an opset before 19",
                "export with --opset 19, and quantise that",
            ),
            _NO_OWN_OPERATORS,
        ),
    ),
    "onnx2torch": Elsewhere(
        "1.5.15",
        (
            Fault(
                lambda t: "Pad" in t.ops and t.opset > 17,
                "it has no Pad of an opset after 17",
                "export with --opset 17 --soft-split unfold",
            ),
            Fault(
                lambda t: "Clip" in t.ops,
                "it has no Clip with computed limits",
                "export with --performer softmax",
            ),
            Fault(
                lambda t: t.quantized or _DYNAMIC & t.ops,
                "it has no operators of quantisation",
                "take the fp32 file",
            ),
            _bf16("it reads no bf16 weights"),
            _NO_OWN_OPERATORS,
        ),
    ),
    "onnxruntime": Elsewhere("1.31.1 and 1.32.0", (_NO_BF16,)),
    "onnxruntime-ggml": Elsewhere(
        "0.2.0",
        (
            Fault(
                lambda t: not {"bfloat16", "float16"} & t.dtypes and not t.quantized,
                "it rounds both operands of a product with a constant to float16: 3e-4 to 8e-4 off",
                "export in fp16, whose numbers fit",
                silent=True,
            ),
            _bf16("it has no bf16"),
        ),
    ),
    "onnxruntime-ep-openvino": Elsewhere(
        "1.8.1, with onnxruntime 1.31.1",
        (
            _bf16_by_itself(
                'give the provider load_config={"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}'
            ),
        ),
    ),
    "onnxruntime-node": Elsewhere("1.30.0", (_NO_BF16,)),
    "onnxruntime-openvino": Elsewhere("1.24.1", (_NO_BF16,)),
    "onnxruntime-web": Elsewhere("1.30.0, wasm", (_NO_BF16,)),
    "onnxruntime-webgpu": Elsewhere(
        "1.30.0, on an adapter without shader-f16",
        (
            _bf16("it has no bf16"),
            Fault(
                lambda t: "float16" in t.dtypes,
                "it wants an adapter with shader-f16",
                _FLOAT32,
            ),
        ),
    ),
    "opencv": Elsewhere(
        "5.0.0",
        (
            _bf16("it has no bf16"),
            _lacks(frozenset({"DynamicQuantizeLinear"}), "quantise with static ranges"),
        ),
    ),
    "openvino": Elsewhere(
        "2026.4.1",
        (
            _bf16_by_itself(
                "compile the model with INFERENCE_PRECISION_HINT=f32; --runtime openvino-f32 is "
                "for those who do"
            ),
        ),
    ),
    "openvino-f32": Elsewhere("2026.4.1, with INFERENCE_PRECISION_HINT=f32"),
    "tinygrad": Elsewhere(
        "0.14.0",
        (
            _bf16("it reads no bf16 weights"),
            _NO_OWN_OPERATORS,
        ),
    ),
    "tract": Elsewhere("0.23.9", (_bf16("it has no bf16"),)),
    "tvm": Elsewhere(
        "0.27.0",
        (
            _bf16("its LayerNormalization takes no bf16"),
            _NO_OWN_OPERATORS,
        ),
    ),
}
"""By the names that ``inspect --runtime`` takes."""


def check_conformance(model: onnx.ModelProto, runtime: str) -> Conformance:
    """What is known of a graph in a runtime of `RUNTIMES`. Raises KeyError."""
    known, traits = RUNTIMES[runtime], _traits(model)
    return Conformance(
        runtime, known.tried, tuple(fault for fault in known.faults if fault.applies(traits))
    )


def _traits(model: onnx.ModelProto) -> _Traits:
    from onnx.helper import tensor_dtype_to_np_dtype

    from t2t_deploy.graph._check import CONTRIB_DOMAIN, tensor_spec

    graph = model.graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    sums = {
        n.output[0] for n in graph.node if n.op_type == "Add" and made_by.get(n.input[0]) == "Erf"
    }
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    types = {one.data_type for one in graph.initializer}
    types |= {one.i for one in attributes if one.name == "to"}
    types |= {one.t.data_type for one in attributes if one.name == "value" and one.HasField("t")}
    return _Traits(
        ops=frozenset(node.op_type for node in graph.node),
        contrib=frozenset(node.op_type for node in graph.node if node.domain == CONTRIB_DOMAIN),
        dtypes=frozenset(str(tensor_dtype_to_np_dtype(one)) for one in types),
        opset=opsets.get("", opsets.get("ai.onnx", 0)),
        pixels=any(tensor_spec(one).dtype == "uint8" for one in graph.input),
        joined_gelu=any(
            node.op_type == "Mul" and made_by.get(node.input[0]) != "Mul" and node.input[1] in sums
            for node in graph.node
        ),
    )
