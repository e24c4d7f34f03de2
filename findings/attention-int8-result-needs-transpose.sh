#!/usr/bin/env bash
# TensorRT-RTX: between attention and the next product INT8 needs a transposing kernel, FP8 none.
#
# Guess: INT8 and FP8 codes are one byte each. A float16 attention whose result is quantised runs the
# same kernels for both: the next product reads the heads' layout, or it does not.
# Seen: on one and the same target (SM89) the attention kernel writes 8-bit codes in both cases. The
# FP8 GEMM reads them as they are. For INT8 a kernel of its own first brings heads x tokens x 64 into
# tokens x heads x 64. Moving QuantizeLinear before the Transpose changes neither.
# Why it matters: one launch and a round trip through memory per block, 14 to 24 of them in a model.
# It is one more reason to prefer FP8 on Ada and later, and it cannot be had by reordering the graph.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116 \
  onnx==1.23.2 numpy==2.4.6 ml_dtypes==0.6.0
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import re
import ml_dtypes, numpy as np, onnx, tensorrt_rtx_bindings as trt
from onnx import TensorProto, helper, numpy_helper

F16, I8, F8 = np.float16, np.int8, ml_dtypes.float8_e4m3fn

class Graph:
    def __init__(self):
        self.nodes, self.consts, self.rng = [], [], np.random.default_rng(0)
    def const(self, value):
        self.consts.append(numpy_helper.from_array(np.asarray(value), f"c{len(self.consts)}"))
        return self.consts[-1].name
    def op(self, kind, *inputs, name=None, **attributes):
        name = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name
    def qdq(self, x, scale, code=I8):
        s, zero = self.const(F16(scale)), self.const(np.zeros((), code))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, s, zero), s, zero)
    def weights(self, shape, scale, code=I8, **axis):
        random = self.rng.integers(-127, 128, shape) if code is I8 else self.rng.normal(size=shape)
        tensors = random.astype(code), np.asarray(scale, F16), np.zeros(np.shape(scale), code)
        return self.op("DequantizeLinear", *map(self.const, tensors), **axis)
    def model(self, y, *shapes):
        self.op("Identity", y, name="y")
        ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT16, s)] for n, s in zip("xy", shapes)]
        graph, opset = helper.make_graph(self.nodes, "g", *ends, self.consts), helper.make_opsetid("", 20)
        return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []
    def log(self, severity, message):
        self.lines += message.split("\n")

LINE = re.compile(r"Name: (.*), LayerType: .*?Inputs: (.*), Constants: (.*), Outputs: (.*), Tactic")
TENSOR = re.compile(r"Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)")

def build(model, target):
    """The engine's bytes, and per kernel: name, inputs, constants, outputs as (type, shape)."""
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, log).parse(model), log.lines[-3:]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the log then lists the kernels
    config.max_aux_streams, config.num_compute_capabilities = 0, 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    engine = builder.build_serialized_network(network, config)
    found = [match for match in map(LINE.match, log.lines) if match]
    parts = lambda text: [(t, tuple(map(int, d.split(",")))) for d, t in TENSOR.findall(text)]
    kernels = [(match[1], *map(parts, match.groups()[1:])) for match in found]
    return (bytes(engine), kernels) if engine else (None, log.lines[-1])

def show(title, kernels):
    print(f"{title}: {len(kernels)} kernels")
    for name, *parts in kernels:
        print(f"    {name}:", *(f"{' '.join(t + str(list(d)) for t, d in part)} |" for part in parts))

print("TensorRT-RTX", trt.__version__, "onnx", onnx.__version__)

N, D, H = 197, 384, 6

def attention(code, early):
    g = Graph()
    x = g.op("Relu", "x")
    wide = lambda: g.const((g.rng.normal(size=(D, D)) / 20).astype(F16))
    def heads(y, order):
        return g.op("Transpose", g.op("Reshape", y, g.const([-1, N, H, D // H])), perm=order)
    orders = [0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]
    q, k, v = (heads(g.op("MatMul", x, wide()), order) for order in orders)
    y = g.op("MatMul", g.op("Softmax", g.op("MatMul", q, k), axis=-1), v)
    y = g.qdq(y, 0.02, code) if early else y
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.const([-1, N, D]))
    y = y if early else g.qdq(y, 0.02, code)
    return g.model(g.op("MatMul", y, g.weights((D, D), 2e-4, code)), [1, N, D], [1, N, D])

seen = {}
for name, code in (("Int8", I8), ("FP8", F8)):
    for early in (True, False):
        _, kernels = build(attention(code, early), "SM89")
        show(f"{name}, QuantizeLinear {'before' if early else 'after'} the Transpose", kernels)
        at = next(i for i, k in enumerate(kernels) if "mha" in k[0])
        assert kernels[at][3] == [(name, (H, N, D // H))], "the attention kernel writes codes"
        seen[name, early] = kernels[at + 1][0].split("_myl0")[0], len(kernels)
print(seen)
for early in (True, False):
    assert "Tran" in seen["Int8", early][0] and seen["FP8", early][0].startswith("MatMul")
    assert seen["Int8", early][1] == seen["FP8", early][1] + 1
EOF
