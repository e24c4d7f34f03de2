#!/usr/bin/env bash
# onnxruntime: signed INT8 codes that several products read are multiplied in float.
#
# Guess: a QuantizeLinear that feeds three DequantizeLinear, one for each of three products (queries, keys and
# values), is computed as three integer products, as one that feeds one is.
# Seen: with uint8 codes they are; with int8 codes the three products are float32 MatMul of dequantised
# tensors. One QuantizeLinear for each product does not help: they are equal, and are merged again first. One
# product of all columns with a Split behind it is computed in integers.
# Why it matters: half of a transformer's products are queries, keys and values. The file is INT8, its results
# are right, and half of it runs in float. Signed codes are what TensorRT takes, and quantize_static can write.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

WIDTH = 64
rng = np.random.default_rng(0)


def graph(kind, own_codes, merged):
    """Three products of one input, or one of three times the columns."""
    arrays = {"s": np.float32(0.02), "z": np.zeros((), kind), "thirds": np.full(3, WIDTH)}
    nodes, node = [], helper.make_node
    if not own_codes:
        nodes.append(node("QuantizeLinear", ["x", "s", "z"], ["codes"]))
    for name in ("all",) if merged else "qkv":
        columns = WIDTH * (3 if merged else 1)
        arrays[f"w_{name}"] = rng.integers(-127, 128, (WIDTH, columns)).astype(np.int8)
        arrays[f"s_{name}"] = np.full(columns, 0.01, np.float32)
        arrays[f"z_{name}"] = np.zeros(columns, np.int8)
        codes = f"codes_{name}" if own_codes else "codes"
        if own_codes:
            nodes.append(node("QuantizeLinear", ["x", "s", "z"], [codes]))
        nodes.append(node("DequantizeLinear", [codes, "s", "z"], [f"x_{name}"]))
        nodes.append(node("DequantizeLinear", [f"{p}_{name}" for p in "wsz"], [f"d_{name}"], axis=1))
        nodes.append(node("MatMul", [f"x_{name}", f"d_{name}"], [name]))
    if merged:
        nodes.append(node("Split", ["all", "thirds"], [*"qkv"], axis=-1))
    info = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "products",
        [info("x", TensorProto.FLOAT, [1, 8, WIDTH])],
        [info(name, TensorProto.FLOAT, [1, 8, WIDTH]) for name in "qkv"],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def computed(model):
    """What the optimised graph multiplies with."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = "optimised.onnx"
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load("optimised.onnx").graph.node)
    return operators["MatMulIntegerToFloat"], operators["MatMul"]


print("onnxruntime", ort.__version__, "- products in integers, in float:")
cases = {
    "uint8 codes, read by three": (np.uint8, False, False),
    "int8 codes, read by three": (np.int8, False, False),
    "int8 codes, one for each": (np.int8, True, False),
    "int8 codes, one product": (np.int8, False, True),
}
found = {name: computed(graph(*case)) for name, case in cases.items()}
for name, counts in found.items():
    print(f"{name:28}", *counts)
if [*found.values()] != [(3, 0), (0, 3), (0, 3), (1, 0)]:
    sys.exit("changed: see the head of this file")
EOF
