#!/usr/bin/env bash
# OpenVINO: in bf16 an attention whose mask is one row for all queries gives other numbers.
#
# Guess: adding a mask of shape (1, 1, 1, N) to the scores is the same as adding it written out for all N
# queries, (1, 1, N, N), in any precision: that is what broadcasting means.
# Seen: in f32 both agree to the last digits. With INFERENCE_PRECISION_HINT=bf16, which is what the CPU plugin
# takes by itself where the processor has bf16, the written-out mask is right to 1 % and the row is off by 140 %:
# nothing of the result is left. No message; the compiled model looks the same.
# Why it matters: a row is how padding is hidden from attention. The file is right in ONNX Runtime, and in
# OpenVINO on every laptop without bf16; on a server it classifies noise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 openvino==2026.4.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import sys

import numpy as np
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

TOKENS, HEADS, WIDTH = 64, 6, 64
CHANNELS = HEADS * WIDTH
rng = np.random.default_rng(0)
weights = {name: (rng.standard_normal((CHANNELS, CHANNELS)) / 20).astype(np.float32) for name in "qkvo"}


def attention(rows):
    """softmax(q kT + mask) v, the last key hidden from all queries by a mask of so many rows."""
    mask = np.zeros((1, 1, rows, TOKENS), np.float32)
    mask[..., -1] = -1e4
    shapes = {"heads": np.array([0, TOKENS, HEADS, WIDTH]), "flat": np.array([0, TOKENS, CHANNELS])}
    arrays = {"mask": mask, **shapes, **{f"w_{name}": one for name, one in weights.items()}}
    node, nodes = helper.make_node, []
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes.append(node("MatMul", ["x", f"w_{name}"], [name]))
        nodes.append(node("Reshape", [name, "heads"], [f"{name}_apart"]))
        nodes.append(node("Transpose", [f"{name}_apart"], [f"{name}_heads"], perm=order))
    nodes.append(node("MatMul", ["q_heads", "k_heads"], ["scores"]))
    nodes.append(node("Add", ["scores", "mask"], ["masked"]))
    nodes.append(node("Softmax", ["masked"], ["shares"], axis=-1))
    nodes.append(node("MatMul", ["shares", "v_heads"], ["means"]))
    nodes.append(node("Transpose", ["means"], ["together"], perm=[0, 2, 1, 3]))
    nodes.append(node("Reshape", ["together", "flat"], ["joined"]))
    nodes.append(node("MatMul", ["joined", "w_o"], ["y"]))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, TOKENS, CHANNELS]) for n in "xy"]
    stored = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    graph = helper.make_graph(nodes, "attention", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


core = ov.Core()
x = rng.standard_normal((1, TOKENS, CHANNELS)).astype(np.float32)
found = {}
for rows in (1, TOKENS):
    model = core.read_model(attention(rows).SerializeToString(), b"")
    for hint in ("f32", "bf16"):
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
        found[rows, hint] = np.array(compiled([x])[0])
expected = found[TOKENS, "f32"]
errors = {key: float(np.linalg.norm(y - expected) / np.linalg.norm(expected)) for key, y in found.items()}
print("openvino", ov.get_version())
for (rows, hint), error in errors.items():
    print(f"mask of {rows:2} rows in {hint:4}: relative error {error:.4f}")
if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
    sys.exit("nothing to see: this processor has no bf16")
if not (errors[1, "f32"] < 1e-5 and errors[TOKENS, "bf16"] < 0.05 and errors[1, "bf16"] > 0.5):
    sys.exit("changed: see the head of this file")
EOF
