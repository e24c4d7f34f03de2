#!/usr/bin/env bash
# TensorRT-RTX: an INT8 MatMul with a scale per output channel writes its integer sums as float16.
#
# Guess: per-channel float16 scales are the accurate form of an INT8 linear layer. The product adds
# up in int32, multiplies by activation scale x weight scale in float32 and rounds to float16 once.
# Seen: the GEMM's factor is 1.0. It writes the bare sum as Half; the next kernel multiplies by a
# Half vector of scale products (4e-6 here: subnormal, 2 digits). With one scalar scale and a Mul by
# the same vector relative to it, the kernels and the bytes they move are the same in number, but
# the factor 4e-6 sits in the GEMM, in float32, before the rounding.
# Why it matters: a sum of 384 products of codes passes 65504 easily and then does not fit into Half.
# That is the usual output of a quantiser, and a run on the CPU does not show it.
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

N, D, M = 197, 384, 1152

def linear(form):
    g = Graph()
    ratio = 1 + 0.3 * g.rng.random(M)
    x = g.qdq(g.op("Relu", "x"), 0.02)
    if form == "scale per channel":
        y = g.op("MatMul", x, g.weights((D, M), 2e-4 * ratio, axis=1))
    else:
        y = g.op("Mul", g.op("MatMul", x, g.weights((D, M), 2e-4)), g.const(ratio.astype(F16)))
    return g.model(g.op("Add", y, g.vector(M)), [1, N, D], [1, N, M])

factors, kernels = {}, {}
for form in ("scale per channel", "one scale, then Mul"):
    engine, kernels[form] = build(linear(form), "SM86")
    show(form, kernels[form])
    (found,) = set(re.findall(rb" alpha=([0-9A-F]{8}) ", engine))
    factors[form] = np.frombuffer(bytes.fromhex(found.decode()), ">f4")[0]
    print("    factor inside the GEMM:", factors[form])
    assert ("Half", (1, N, M)) in kernels[form][1][3], "the GEMM writes Half"
assert factors["scale per channel"] == 1.0
assert np.isclose(factors["one scale, then Mul"], float(F16(0.02)) * float(F16(2e-4)), rtol=1e-6)
one, two = kernels.values()
assert len(one) == len(two) == 3 and moved(one) == moved(two)
assert ("Half", (1, M)) in one[2][2], "the scale products, as a Half vector"
rng = np.random.default_rng(1)
sums = rng.integers(0, 128, (N, D)) @ rng.integers(-127, 128, (D, M))
share = np.mean(np.abs(sums) > 65504)
print(f"of the sums of random codes {share:.0%} are beyond float16's 65504")
assert share > 0.2
EOF
