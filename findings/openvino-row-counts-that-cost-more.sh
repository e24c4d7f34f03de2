#!/usr/bin/env bash
# OpenVINO: an INT8 product of 197 rows takes longer than one of 200.
#
# Guess: three rows more cost 1.5 % more, or nothing where the kernel fills whole vectors anyway.
# Seen: the kernel cuts the rows into blocks of one size, which it looks for among the divisors. 197 is a
# prime: it has none, and the product takes a fifth to a third longer than that of 200 rows; so do 199 and 202
# (2 x 101), while 196, 198 and 204 do not. The same holds in bf16. ONNX Runtime's kernels have no such step.
# Why it matters: 14 x 14 patches and a class token are 197, the length of nearly every vision transformer.
# Three rows that nothing reads make the whole model faster, and nobody would look for that.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 openvino==2026.4.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import sys
import time

import numpy as np
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

INPUTS, OUTPUTS, PRODUCTS = 1152, 384, 12
rng = np.random.default_rng(0)


def products(rows):
    """Several products of one quantised input, as requests that OpenVINO computes."""
    arrays = {"s": np.float32(0.02), "z": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
    ]
    for index in range(PRODUCTS):
        arrays[f"w{index}"] = rng.integers(-127, 128, (INPUTS, OUTPUTS)).astype(np.int8)
        arrays[f"s{index}"] = np.full(OUTPUTS, 0.01, np.float32)
        arrays[f"z{index}"] = np.zeros(OUTPUTS, np.int8)
        names = [f"{letter}{index}" for letter in "wsz"]
        nodes.append(helper.make_node("DequantizeLinear", names, [f"d{index}"], axis=1))
        nodes.append(helper.make_node("MatMul", ["d", f"d{index}"], [f"y{index}"]))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "products",
        [info("x", TensorProto.FLOAT, [1, rows, INPUTS])],
        [info(f"y{index}", TensorProto.FLOAT, [1, rows, OUTPUTS]) for index in range(PRODUCTS)],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    core = ov.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "2", "NUM_STREAMS": "1"}
    compiled = core.compile_model(core.read_model(model.SerializeToString(), b""), "CPU", settings)
    return compiled.create_infer_request(), rng.standard_normal((1, rows, INPUTS)).astype(np.float32)


flags = next((line for line in open("/proc/cpuinfo") if line.startswith("flags")), "").split()
requests = {rows: products(rows) for rows in (196, 197, 198, 199, 200, 202, 204)}
best = dict.fromkeys(requests, np.inf)
for _ in range(60):  # the best of many, in turns: a busy machine only adds
    for rows, (request, x) in requests.items():
        for _ in range(3):
            started = time.perf_counter()
            request.infer([x])
            best[rows] = min(best[rows], time.perf_counter() - started)
print("openvino", ov.get_version(), "VNNI" if "avx512_vnni" in flags else "no AVX-512 VNNI")
for rows, seconds in best.items():
    print(f"{rows} rows: {seconds / PRODUCTS * 1e6:4.0f} us a product, {seconds / best[200]:.2f} times 200 rows")
if "avx512_vnni" not in flags:
    sys.exit("nothing to see: the kernel looked at is that of AVX-512 with VNNI")
if not (best[197] > 1.08 * best[200] and best[199] > 1.08 * best[200] and best[196] < 1.08 * best[200]):
    sys.exit("changed: see the head of this file")
EOF
