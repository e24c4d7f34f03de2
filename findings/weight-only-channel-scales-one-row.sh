#!/usr/bin/env bash
# TensorRT-RTX: INT8 weights with a scale per channel are blown up to float16 in memory for one row.
#
# Guess: weight-only INT8 pays most where one row meets a large matrix (the class token, the
# classifier, at batch 1): half the weight bytes are read. Scale per channel or per tensor is the same.
# Seen: with a scalar scale, and with a scalar scale and a Mul by the vector afterwards, the codes are
# widened inside the product. With the vector in DequantizeLinear a kernel of its own writes the
# whole weight matrix as Half at every inference and the product reads it back: 1.77 MB of traffic
# instead of 0.01. From two rows on, or from batch 2 on, the same graph does not do this.
# Why it matters: the smaller file gives the heavier engine exactly in the case it was made for, and
# a test at batch 2 or with all tokens does not show it.
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
    def vector(self, n):
        return self.const((1 + 0.1 * self.rng.normal(size=n)).astype(F16))
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

D, M = 384, 1152

def head(form, batch, rows):
    g = Graph()
    ratio = 1 + 0.3 * g.rng.random(M)
    x = g.op("Relu", "x")
    if form == "vector":
        y = g.op("MatMul", x, g.weights((D, M), 2e-4 * ratio, axis=1))
    else:
        y = g.op("MatMul", x, g.weights((D, M), 2e-4))
        y = g.op("Mul", y, g.const(ratio.astype(F16))) if form == "scalar, Mul" else y
    y = g.op("Add", y, g.vector(M))
    return g.model(y, [batch, rows, D], [batch, rows, M])

spread = {}
for batch, rows in ((1, 1), (2, 1), (1, 2), (1, 197)):
    for form in ("scalar", "scalar, Mul", "vector"):
        _, kernels = build(head(form, batch, rows), "SM86")
        show(f"batch {batch}, {rows} rows, {form}", kernels)
        outputs = [tensor for kernel in kernels for tensor in kernel[3]]
        spread[batch, rows, form] = any(t == "Half" and d[-2:] == (D, M) for t, d in outputs)
        if (batch, rows) == (1, 1):
            assert (moved(kernels) > 1_700_000) == (form == "vector")
print("writes the weights as Half:", [case for case, yes in spread.items() if yes])
assert [case for case, yes in spread.items() if yes] == [(1, 1, "vector")]
EOF
