"""What `inspect --runtime` knows of other runtimes, on graphs that have what decides."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from t2t_deploy.graph import RUNTIMES, check_conformance

PLAIN = "y = Add(x, x)"
JOINED_GELU = "e = Erf(x)\n a = Add(e, x)\n y = Mul(x, a)"
CODES = "c = QuantizeLinear(x, s, z)\n y = DequantizeLinear(c, s, z)"
SCALES = "float s = {1.0}, int8 z = {0}"


def found(runtime: str, nodes: str, stored: str = "", opset: int = 18, kind: str = "float") -> str:
    """Reasons against a graph of ``nodes``, as one text."""
    stored = f"<{stored}>" if stored else ""
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": {opset}, "com.microsoft": 1]>'
        f"g ({kind}[4] x) => (float[4] y) {stored} {{ {nodes} }}"
    )
    conformance = check_conformance(model, runtime)
    assert (conformance.runtime, conformance.tried) == (runtime, RUNTIMES[runtime].tried)
    return "; ".join(fault.reason for fault in conformance.faults)


def test_a_plain_float32_graph_is_right_but_where_products_are_rounded() -> None:
    wrong = {name for name in RUNTIMES if found(name, PLAIN, "float s = {1.0}")}
    assert wrong == {"openvino", "onnxruntime-ep-openvino", "onnxruntime-ggml"}


@pytest.mark.parametrize(
    ("runtime", "nodes", "stored", "reason"),
    [
        ("mnn", JOINED_GELU, "", "it takes the GELU for one of its own"),
        ("mnn", "e = Erf(x)\n a = Add(e, x)\n h = Mul(x, x)\n y = Mul(h, a)", "", ""),
        # of 8 bits the same is below their own rounding
        ("mnn", f"{CODES.replace('y =', 'w =')}\n{JOINED_GELU}", SCALES, ""),
        ("ncnn", "y = ReduceMax(x)", "", "pnnx loses the axis"),
        ("ncnn", "y = ReduceSum(x)", "", "pnnx loses the axis"),
        ("ncnn", "y, i = TopK(x, k)", "int64[1] k = {1}", "it has no TopK"),
        ("ncnn", CODES, SCALES, "pnnx leaves out quantisation"),
        ("ncnn", "h = Cast<to: int = 10>(x)\n y = Cast<to: int = 1>(h)", "", "float32 alone"),
        ("nxrt", "y = MatMulInteger(x, x)", "", "it has no DynamicQuantizeLinear and MatMulIn"),
        ("onnx-reference", CODES, SCALES, "no DequantizeLinear of an opset before 19"),
        ("litert", JOINED_GELU, "", "a TensorFlow operator of Erf"),
        ("onnx2torch", "y = Pad(x, p)", "int64[2] p = {0, 0}", "no Pad of an opset after 17"),
        ("onnx2torch", "y = Clip(x, x, x)", "", "no Clip with computed limits"),
        ("onnx2torch", CODES, SCALES, "no operators of quantisation"),
        ("tinygrad", "y = com.microsoft.Gelu(x)", "", "none of ONNX Runtime's own"),
        ("tvm", "h = Cast<to: int = 16>(x)\n y = Cast<to: int = 1>(h)", "", "takes no bf16"),
        ("onnxruntime", "h = Cast<to: int = 16>(x)\n y = Cast<to: int = 1>(h)", "", "no bf16"),
        ("onnxruntime-webgpu", PLAIN, "float16 s = {15360}", "shader-f16"),
        ("opencv", "y, a, b = DynamicQuantizeLinear(x)", "", "it has no DynamicQuantizeLinear"),
        ("iree", "y = com.microsoft.Gelu(x)", "", "none of ONNX Runtime's own"),
        ("openvino", CODES, SCALES, ""),
        ("openvino", PLAIN, "float16 s = {15360}", "bf16 by itself"),
        ("openvino-f32", PLAIN, "float s = {1.0}", ""),
        ("onnxruntime-ggml", PLAIN, "float16 s = {15360}", ""),
    ],
)
def test_what_decides(runtime: str, nodes: str, stored: str, reason: str) -> None:
    said = found(runtime, nodes, stored)
    assert reason in said and bool(reason) is bool(said)


def test_codes_are_known_to_the_reference_from_opset_19_on() -> None:
    assert found("onnx-reference", CODES, SCALES, opset=19) == ""


def test_ncnn_takes_no_pixels() -> None:
    nodes = "y = Cast<to: int = 1>(x)"
    assert found("ncnn", nodes, kind="uint8") == "it refuses a uint8 input"


def test_what_computes_other_numbers_in_silence_is_marked() -> None:
    silent = {
        name for name, known in RUNTIMES.items() if any(fault.silent for fault in known.faults)
    }
    assert silent == {
        "litert",
        "mnn",
        "ncnn",
        "openvino",
        "onnxruntime-ep-openvino",
        "onnxruntime-ggml",
    }
