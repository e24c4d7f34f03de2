#!/usr/bin/env bash
# onnxruntime-ggml: a float32 product with a constant is computed with both operands rounded to float16.
#
# Guess: an execution provider of ONNX Runtime computes the type that the file says, or has an option for less, as
# CUDA's use_tf32; if it stores weights as float16 to save memory, the activations still are float32.
# Seen: products with a constant are off by 2.8e-4. With weights that float16 can hold it is still 2.0e-4, which is
# the rounding of x; with such weights and such an x the product is right. No option says so (device, threads,
# partial, dump) and no warning; a line of its log for information counts "f16_bytes". Two inputs, none of them a
# constant, are multiplied in float32.
# Why it matters: all linear layers of a transformer are such products. Logits are off by 3e-4 to 8e-4, with the CPU
# chosen as the device and every input, output and initialiser of the file float32; and 70000 times
# the identity, behind a Relu, is 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.30.0 \
  onnxruntime-ggml==0.2.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - 2>log.txt <<'EOF'
import sys

import numpy as np
import onnxruntime as ort
import onnxruntime_ggml as ggml
from onnx import TensorProto, helper, numpy_helper

ROWS, WIDTH = 32, 256
rng = np.random.default_rng(0)
x = rng.standard_normal((1, ROWS, WIDTH)).astype(np.float32)
drawn = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32)
held, held_x = (one.astype(np.float16).astype(np.float32) for one in (drawn, x))


def error(x, weights, *, constant):
    """Relative error of x times weights, an initialiser or a second input."""
    info = helper.make_tensor_value_info
    ends = [info("x", TensorProto.FLOAT, x.shape)]
    ends += [] if constant else [info("w", TensorProto.FLOAT, weights.shape)]
    stored = [numpy_helper.from_array(weights, "w")] if constant else []
    nodes = [helper.make_node("MatMul", ["x", "w"], ["product"]), helper.make_node("Relu", ["product"], ["y"])]
    graph = helper.make_graph(nodes, "product", ends, [info("y", TensorProto.FLOAT, x.shape)], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = ggml.InferenceSession(model.SerializeToString(), {"device": "cpu", "threads": "1"})
    (y,) = session.run(None, {"x": x} if constant else {"x": x, "w": weights})
    exact = np.maximum(x.astype(np.float64) @ weights.astype(np.float64), 0)
    return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))


cases = {
    "any x, any weights": error(x, drawn, constant=True),
    "weights that float16 holds": error(x, held, constant=True),
    "x and weights that it holds": error(held_x, held, constant=True),
    "70000 times the identity": error(np.full_like(x, 7e4), np.eye(WIDTH, dtype=np.float32), constant=True),
    "two inputs": error(x, drawn, constant=False),
}
print("onnxruntime", ort.__version__, "onnxruntime-ggml", ggml.version())
for name, found in cases.items():
    print(f"{name:27} relative error {found:.1e}")
if [found > 1e-4 for found in cases.values()] != [True, True, False, True, False]:
    sys.exit("changed: see the head of this file")
EOF
