#!/usr/bin/env bash
# TensorRT-RTX: quantising only q, k and v of an attention moves over three times float16's bytes.
#
# Guess: each Q/DQ pair that is added saves something. With q, k, v in INT8 the first product runs in
# INT8 and reads half the bytes; softmax stays in float16 for accuracy.
# Seen: float16 attention is one fused kernel, and so is INT8 attention if the softmax result *and*
# the attention result are quantised too. With q, k, v only, or without one of the two, it falls
# apart into 8 or 9 kernels that write all tokens x tokens scores, several times over: 197 keys are
# odd and the operands are copied to 198. FP8 needs the softmax result only.
# Why it matters: the careful choice (keep softmax in float16) gives the heaviest engine of all. And
# the fused form needs a scale for softmax: at 1/127 a flat attention over 300 tokens is all zeros.
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

def attention(code, inputs, softmax, result):
    g = Graph()
    x = g.op("Relu", "x")
    def heads(order):
        y = g.op("Transpose", g.op("Reshape", x, g.const([-1, N, H, D // H])), perm=order)
        return g.qdq(y, 0.03, code) if inputs else y
    q, k, v = heads([0, 2, 1, 3]), heads([0, 2, 3, 1]), heads([0, 2, 1, 3])
    a = g.op("Softmax", g.op("MatMul", q, k), axis=-1)
    y = g.op("MatMul", g.qdq(a, 1 / (127 if code is I8 else 448), code) if softmax else a, v)
    y = g.op("Transpose", g.qdq(y, 0.02, code) if result else y, perm=[0, 2, 1, 3])
    return g.model(g.op("Reshape", y, g.const([-1, N, D])), [1, N, D], [1, N, D])

fused, bytes_moved = {}, {}
cases = [("float16", I8, 0, 0, 0)]
cases += [(f"{name} qkv{' +softmax' * s}{' +result' * r}", code, 1, s, r)
          for name, code in (("INT8", I8), ("FP8", F8)) for s in (0, 1) for r in (0, 1)]
for name, *case in cases:
    _, kernels = build(attention(*case), "SM89")
    show(name, kernels)
    fused[name] = any("mha" in kernel[0] for kernel in kernels)
    bytes_moved[name] = moved(kernels)
    padded = any(198 in dims for kernel in kernels for _, dims in kernel[3])
    assert padded == (not fused[name])
print(bytes_moved)
assert [name for name, yes in fused.items() if yes] == [
    "float16", "INT8 qkv +softmax +result", "FP8 qkv +softmax", "FP8 qkv +softmax +result"]
assert bytes_moved["INT8 qkv"] > 3 * bytes_moved["float16"] > 3 * bytes_moved["INT8 qkv +softmax +result"]
flat = np.rint(np.full(300, 1 / 300) * 127)
print("codes of a flat softmax over 300 tokens:", set(flat.tolist()))
assert not flat.any()
EOF
