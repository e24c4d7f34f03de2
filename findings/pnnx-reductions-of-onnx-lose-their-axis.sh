#!/usr/bin/env bash
# pnnx and ncnn: x - mean(x) of an ONNX file is 0 everywhere, since the mean is x itself.
#
# Guess: ReduceMean over the last axis becomes ncnn's Reduction over it; where a converter cannot carry an axis
# over it says so, as it does for operators that it does not know ("todo").
# Seen: with axes as an input (opset 18) the Reduction has none; with axes as an attribute (opset 17) it has the
# axis of the tensor with its batch, which ncnn's tensors do not have. Either way ncnn gives x back, of x's shape,
# ReduceSum likewise, with or without keepdims. No message of either. The operators that hold a mean inside,
# LayerNormalization and Softmax, are right.
# Why it matters: what folds or centres a LayerNorm by hand is wrong there and the operator is not: another exact
# form of the same model makes the file right (--soft-split unfold).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 pnnx==20261020 ncnn==1.0.20261020 \
  numpy==2.4.6
cd "$folder"
PATH="$folder/venv/bin:$PATH" "$folder/venv/bin/python" - <<'EOF'
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import ncnn
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

x = (np.arange(24, dtype=np.float32) ** 2 / 10).reshape(1, 4, 6)
one = np.ones(6, np.float32)
none = np.zeros(6, np.float32)


def computed(nodes, opset, stored):
    """y (1, 4, 6) of x, and the lines of ncnn's file that reduce."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name in "xy"]
    arrays = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "mean", ends[:1], ends[1:], arrays)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), "m.onnx")
    done = subprocess.run(["pnnx", "m.onnx", "inputshape=[1,4,6]", "fp16=0"], check=True, capture_output=True)
    assert b"todo" not in done.stdout + done.stderr
    net = ncnn.Net()
    net.load_param("m.ncnn.param")
    net.load_model("m.ncnn.bin")
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(x[0]).clone())
    _, y = extractor.extract("out0")
    lines = [line for line in Path("m.ncnn.param").read_text().splitlines() if line.startswith("Reduction")]
    return np.array(y), " ".join(" ".join(lines).split()[6:])


mean = helper.make_node("ReduceMean", ["x", "axis"], ["mean"], keepdims=1)
old = helper.make_node("ReduceMean", ["x"], ["mean"], axes=[2], keepdims=1)
less = helper.make_node("Sub", ["x", "mean"], ["y"])
norm = helper.make_node("LayerNormalization", ["x", "one", "none"], ["y"], axis=-1)
centred = x[0] - x[0].mean(axis=-1, keepdims=True)
normal = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
cases = {
    "x - ReduceMean, opset 18": ([mean, less], 18, {"axis": np.array([2])}, centred),
    "x - ReduceMean, opset 17": ([old, less], 17, {}, centred),
    "LayerNormalization": ([norm], 18, {"one": one, "none": none}, normal),
}
print("pnnx", version("pnnx"), "ncnn", version("ncnn"))
seen = []
for name, (nodes, opset, stored, expected) in cases.items():
    y, line = computed(nodes, opset, stored)
    off = float(np.abs(y - expected).max())
    seen.append((not y.any(), off < 1e-3))
    print(f"{name:25} largest {np.abs(y).max():.3f}, should be {np.abs(expected).max():.3f}   {line}")
if seen != [(True, False), (True, False), (False, True)]:
    sys.exit("changed: see the head of this file")
EOF
