#!/usr/bin/env bash
# onnxruntime: session.x64quantprecision makes unsigned codes of signed weights with VNNI too.
#
# Guess: the setting avoids the saturation of unsigned activations by signed weights, which processors
# with VNNI do not have; so it does nothing there, and can be set for every machine.
# Seen: so it was in 1.23.2. In 1.32.0 the weights of the optimised graph are uint8 wherever it is 1, with
# VNNI too. Both forms give the exact sums there, and the unsigned one takes 2 to 3 times as long for one
# product, for VNNI multiplies unsigned by signed.
# Why it matters: set for all machines, as a safe default, it takes VNNI's speed from every 8-bit model in
# silence: the file still says int8 and the results are the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import sys
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
x = rng.integers(0, 256, (256, 1024), dtype=np.uint8)
w = rng.integers(-127, 128, (1024, 1024), dtype=np.int8)
arrays = {"w": w, "zx": np.array(128, np.uint8), "zw": np.zeros(1024, np.int8)}
graph = helper.make_graph(
    [helper.make_node("MatMulInteger", ["x", "w", "zx", "zw"], ["y"])],
    "product",
    [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
    [helper.make_tensor_value_info("y", TensorProto.INT32, (256, 1024))],
    [numpy_helper.from_array(value, name) for name, value in arrays.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
exact = (x.astype(np.int64) - 128) @ w.astype(np.int64)

flags = next((line for line in open("/proc/cpuinfo") if line.startswith("flags")), "").split()
vnni = bool({"avx512_vnni", "avx_vnni"} & set(flags))
print("onnxruntime", ort.__version__, "VNNI" if vnni else "no VNNI")
types, sessions = {}, {}
for setting in "01":
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", setting)
    options.optimized_model_filepath = f"{setting}.onnx"
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    stored = [numpy_helper.to_array(one) for one in onnx.load(f"{setting}.onnx").graph.initializer]
    (types[setting],) = {one.dtype.name for one in stored if one.shape == w.shape}
    sessions[setting] = session
ratios = []
for _ in range(9):
    spent = {}
    for setting, session in sessions.items():
        session.run(None, {"x": x})
        started = time.perf_counter()
        for _ in range(20):
            (y,) = session.run(None, {"x": x})
        spent[setting] = time.perf_counter() - started
        if vnni:
            assert np.array_equal(y, exact)
    ratios.append(spent["1"] / spent["0"])
print("weights as computed:", types, "- time with 1 / with 0:", round(float(np.median(ratios)), 2))
if not vnni:
    sys.exit("nothing to see: this processor has no VNNI")
if types != {"0": "int8", "1": "uint8"}:
    sys.exit("changed: see the head of this file")
EOF
