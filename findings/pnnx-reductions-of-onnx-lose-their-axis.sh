#!/usr/bin/env bash
# pnnx and ncnn: x - mean(x) of an ONNX file is 0 everywhere, since the mean is x itself.
#
# Guess: ReduceMean over the last axis becomes ncnn's Reduction over it; where a converter cannot carry an axis
# over it says so, as it does for operators that it does not know ("todo").
# Seen: with axes as an input (ReduceMean from opset 18 on, ReduceSum from 13 on) the Reduction has none, and ncnn
# gives x back, of x's shape. No message of either. With axes as an attribute (ReduceMean of opset 17) it is right,
# and so are the operators that hold a mean inside, LayerNormalization and Softmax.
# Why it matters: what folds or centres a LayerNorm by hand, or sums features, is wrong there and the operator is
# not: another exact form of the same model makes the file right (--target ncnn).
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

# without a batch: ncnn gets all three axes
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
    extractor.input("in0", ncnn.Mat(x).clone())
    _, y = extractor.extract("out0")
    lines = [line for line in Path("m.ncnn.param").read_text().splitlines() if line.startswith("Reduction")]
    return np.array(y), " ".join(" ".join(lines).split()[6:])


mean = helper.make_node("ReduceMean", ["x", "axis"], ["mean"], keepdims=1)
total = helper.make_node("ReduceSum", ["x", "axis"], ["mean"], keepdims=1)
old = helper.make_node("ReduceMean", ["x"], ["mean"], axes=[2], keepdims=1)
less = helper.make_node("Sub", ["x", "mean"], ["y"])
norm = helper.make_node("LayerNormalization", ["x", "one", "none"], ["y"], axis=-1)
centred = x - x.mean(axis=-1, keepdims=True)
normal = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
cases = {
    "x - ReduceMean, opset 18": ([mean, less], 18, {"axis": np.array([2])}, centred),
    "x - ReduceSum, opset 18": (
        [total, less],
        18,
        {"axis": np.array([2])},
        x - x.sum(axis=-1, keepdims=True),
    ),
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
if seen != [(True, False), (True, False), (False, True), (False, True)]:
    sys.exit("changed: see the head of this file")
EOF
