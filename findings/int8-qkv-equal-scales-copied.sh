#!/usr/bin/env bash
# TensorRT-RTX: INT8 q, k, v with equal scales are merged into one product, which costs three copies.
#
# Guess: giving the q, k and v products one common scale can only help: the builder can merge them
# into one GEMM, read the tokens once and launch less.
# Seen: it does merge them. If the results stay Half, that is fine: 4 kernels instead of 6, and
# fewer bytes. If the results are quantised to INT8, the merged GEMM writes tokens x 1152 and three
# more kernels rearrange it into heads: 7 kernels and a quarter more bytes than with three slightly
# different scales, where each GEMM writes what attention reads.
# Why it matters: an INT8 attention wants different scales for q, k and v (1, 1.1, 1.2 do), a Half
# attention wants equal ones; the choice is made in the quantiser, far from the engine.
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

def moved(kernels):
    size = {"Float": 4, "Half": 2, "FP8": 1, "Int8": 1}
    return sum(size[t] * int(np.prod(d)) for _, i, _, o in kernels for t, d in i + o)

def show(title, kernels):
    print(f"{title}: {len(kernels)} kernels, {moved(kernels)} bytes in and out of them")
    for name, *parts in kernels:
        print(f"    {name}:", *(f"{' '.join(t + str(list(d)) for t, d in part)} |" for part in parts))

print("TensorRT-RTX", trt.__version__, "onnx", onnx.__version__)

N, D, H = 197, 384, 6

def attention(scales, int8):
    g = Graph()
    x = g.qdq(g.op("Relu", "x"), 0.02)
    q, k, v = (g.op("MatMul", x, g.weights((D, D), 2e-4 * s)) for s in scales)
    if int8:
        q, k, v = (g.qdq(t, 0.03 * s) for t, s in zip((q, k, v), scales))
    def heads(y, order):
        return g.op("Transpose", g.op("Reshape", y, g.const([-1, N, H, D // H])), perm=order)
    q, k, v = heads(q, [0, 2, 1, 3]), heads(k, [0, 2, 3, 1]), heads(v, [0, 2, 1, 3])
    a = g.op("Softmax", g.op("MatMul", q, k), axis=-1)
    y = g.op("MatMul", g.qdq(a, 1 / 127) if int8 else a, v)
    y = g.op("Transpose", g.qdq(y, 0.02) if int8 else y, perm=[0, 2, 1, 3])
    return g.model(g.op("Reshape", y, g.const([-1, N, D])), [1, N, D], [1, N, D])

seen = {}
for int8 in (False, True):
    for name, scales in (("own", (1, 1.1, 1.2)), ("equal", (1, 1, 1))):
        _, kernels = build(attention(scales, int8), "SM86")
        show(f"{'INT8' if int8 else 'Half'} attention, {name} scales", kernels)
        merged = any(k[0].count("MatMul") == 3 for k in kernels)
        copies = sum("_myl_ReshTranReshMove_" in k[0] for k in kernels)
        seen[int8, name] = len(kernels), moved(kernels), merged, copies
print(seen)
assert not seen[False, "own"][2] and not seen[True, "own"][2], "own scales: three GEMMs"
assert seen[False, "equal"][2] and seen[True, "equal"][2], "equal scales: one GEMM"
assert [seen[k][0] for k in seen] == [6, 4, 6, 7]
assert seen[False, "equal"][1] < seen[False, "own"][1]
assert seen[True, "equal"][1] > 1.2 * seen[True, "own"][1] and seen[True, "equal"][3] == 3
EOF
