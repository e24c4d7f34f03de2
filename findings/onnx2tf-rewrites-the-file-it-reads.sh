#!/usr/bin/env bash
# onnx2tf: the converter writes over the ONNX file that it is given, and breaks operators of other domains.
#
# Guess: -i names what is read and -o the folder that is written. If the converter names nodes or simplifies the graph, it
# does so in memory or in a copy in the output folder; the file that was given keeps its bytes.
# Seen: the file's bytes change, whether the conversion succeeds or not: nodes without a name get one, and every node
# is written without its domain. A Gelu of com.microsoft is a Gelu of ONNX then, and ONNX Runtime, which
# ran the file before, refuses it in its declared opset. No message. With -nuonag the file stays.
# Why it matters: who tries a conversion damages the artifact that is to be shipped, and its hash no longer is the one that was
# signed or recorded. Files that use ONNX Runtime's own operators no longer load. Convert a copy.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx2tf==1.29.24 ai-edge-litert==2.1.0
cd "$folder"
"$folder/venv/bin/python" - 2> "$folder/log" <<'EOF' || { tail -5 "$folder/log"; exit 1; }
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def save(path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gelu", ["h"], ["y"], domain="com.microsoft"),
    ]
    taken, made = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 8])] for name in "xy")
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "graph", taken, made, [weight])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def loads(path):
    try:
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as err:
        return f"no: {str(err).split(':')[-1].strip()[:90]}"
    return "yes"


print(*(f"{name} {version(name)}" for name in ("onnx2tf", "onnx", "onnxruntime")))
seen = {}
for option in ((), ("-nuonag",)):
    path = Path("model.onnx")
    save(path)
    before = path.read_bytes()
    print("loads before:", loads(path))
    command = [str(Path(sys.executable).parent / "onnx2tf"), "-i", str(path), "-o", "made", "-n", *option]
    status = subprocess.run(command, capture_output=True).returncode
    same, after = path.read_bytes() == before, loads(path)
    nodes = [(node.domain, node.op_type, node.name) for node in onnx.load(path).graph.node]
    print(f"onnx2tf {' '.join(option)} ends with {status}; the file is {'the same' if same else 'changed'}; loads after: {after}; {nodes}")
    seen[option] = same, after == "yes"
if seen != {(): (False, False), ("-nuonag",): (True, True)}:
    print("changed: see the head of this file")
    sys.exit(1)
EOF
